"""Names of dtypes and attention implementations."""

from __future__ import annotations

DTYPE_ALIASES = {
    "bf16": ("bf16", "bfloat16", "torch.bfloat16", "torch.bf16", "bfloat"),
    "fp16": ("fp16", "float16", "half", "torch.float16", "torch.fp16", "torch.half"),
    "fp32": ("fp32", "float32", "float", "torch.float32", "torch.fp32", "torch.float"),
}
VARLEN_ATTENTION = "arctic_varlen"
NEEDS_CUDA = ("flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention that trains on CUDA only (torch's flex_attention has no backward pass on the CPU)."""
FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
}
"""Packages of which one must be installed (transformers fetches a kernel from the hub with `kernels`)."""
ATTENTION = (VARLEN_ATTENTION, "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
SPEC_MODEL_TYPE = "arctic_hydra_spec"
"""`model_type` in the config of an export that has the layout of a registered model."""
QUANTIZATION = "arctic_hydra_quantization"
"""Temporary attribute of a model config: quantization settings, which `create_model` removes when it loads the weights."""
