"""Hugging Face models with Liger's Triton kernels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.distributed import count_gpus
from arctic_hydra.errors import ModelError
from arctic_hydra.model.hf import HFModelFactory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


@component(group="model", name="liger")
class LigerModelFactory(HFModelFactory):
    """A Hugging Face model whose RoPE, RMSNorm, SwiGLU and loss run in Liger's kernels; needs CUDA."""

    fallback: bool = False
    """Without CUDA, run the same model on torch's own kernels instead of stopping."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem where there is no CUDA device and no fallback was asked for."""
        if not self.fallback and count_gpus() == 0:
            yield (
                "fallback: got false, but the kernels of model=liger need a CUDA GPU and this machine has none; "
                "pass model=hf, or model.fallback=true"
            )
        yield from super().check_environment()

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """Load the model, then patch it; raises ModelError for an architecture that Liger does not know.

        Liger itself only logs an unknown architecture and leaves the model as it is.
        """
        model = super().create_model(config)
        if count_gpus() == 0:
            log.warning(
                "model.fallback=true: no CUDA GPU here, so the model runs on torch's kernels instead of Liger's"
            )
            return model
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance
        from transformers.integrations import is_deepspeed_zero3_enabled

        if config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            known = ", ".join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))
            raise ModelError(
                f"model: Liger has no kernels for model type {config.model_type!r}; pass model=hf (Liger knows {known})"
            )
        # The fused loss reads `lm_head.weight` itself, which ZeRO-3 holds as an empty shard at that moment.
        fused = not is_deepspeed_zero3_enabled()
        _apply_liger_kernel_to_instance(model, fused_linear_cross_entropy=fused, cross_entropy=False)
        self.fused_loss = fused  # type: ignore[misc]
        return model
