"""Hugging Face models with Liger's Triton kernels."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.distributed import count_gpus
from arctic_hydra.errors import ModelError
from arctic_hydra.model.hf import HFModelFactory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

_PATCHED = ("transformers.models.", "torch.nn.modules.", "torch.nn.functional", "torch.nn")
"""Modules whose attributes Liger replaces."""


@component(group="model", name="liger")
class LigerModelFactory(HFModelFactory):
    """A Hugging Face model whose RoPE, RMSNorm and SwiGLU run in Liger's kernels; needs CUDA."""

    fallback: bool = False
    """Without CUDA, run the model with torch's kernels instead of failing."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if there is no CUDA device and `fallback` is off."""
        if not self.fallback and count_gpus() == 0:
            yield (
                "fallback: got false, but the kernels of model=liger need a CUDA GPU and this machine has none; "
                "pass model=hf, or model.fallback=true"
            )
        yield from super().check_environment()

    def create_config(self) -> PretrainedConfig:
        """Return the model's config; raises ModelError for an architecture that Liger does not support.

        Liger itself only logs such an architecture and leaves the model unchanged.
        """
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        config = super().create_config()
        if config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            known = ", ".join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))
            raise ModelError(
                f"model: Liger has no kernels for model type {config.model_type!r}; pass model=hf (Liger supports {known})"
            )
        return config

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """Load the model, then apply Liger's kernels to it."""
        model = super().create_model(config)
        if count_gpus() == 0:
            log.warning("this machine has no CUDA GPU, so model=liger runs on torch's kernels instead of Liger's")
        else:
            apply_kernels(model)
        return model


def apply_kernels(model: PreTrainedModel, **which: bool) -> None:
    """Apply Liger's kernels (`which`: rope, rms_norm, swiglu, ...; all by default) to this model only.

    Liger also patches the module that defines the architecture, which would affect every model created later. That is
    undone here, and the functions that it replaced there (RoPE) are bound to this model's layers instead. The loss is left
    to the trainer, which calls Liger's kernel directly.
    """
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    before = {name: dict(vars(module)) for name, module in sys.modules.items() if name.startswith(_PATCHED)}
    _apply_liger_kernel_to_instance(model, fused_linear_cross_entropy=False, cross_entropy=False, **which)
    replaced: dict[int, dict[str, FunctionType]] = {}
    for name, originals in before.items():
        module = sys.modules[name]
        for attribute, original in originals.items():
            patch = getattr(module, attribute)
            if patch is not original:
                setattr(module, attribute, original)
                if isinstance(patch, FunctionType):
                    replaced.setdefault(id(vars(module)), {})[attribute] = patch
    for part in model.modules():
        forward = type(part).forward
        patches = replaced.get(id(getattr(forward, "__globals__", None)), {})
        if patches.keys() & set(forward.__code__.co_names if patches else ()):
            part.forward = MethodType(_with_globals(forward, patches), part)


def _with_globals(function: FunctionType, patches: dict[str, FunctionType]) -> FunctionType:
    """Return a copy of `function` that sees `patches` in place of globals of these names."""
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **patches},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
