"""Offload checkpointed activations to host memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.errors import ModelError

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class ActivationOffload(ModelConverter):
    """Copies the input of each recomputed layer to pinned host memory (`trainer.activation_checkpoint_cpu_offload`)."""

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap the checkpoint function of each recomputed layer; raises ModelError if no layer is recomputed."""
        found = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
        if not found:
            raise ModelError(
                "trainer.activation_checkpoint_cpu_offload: got true, but no layer of the model recomputes its activations; "
                "pass model.disable_activation_checkpoint=false"
            )
        for module in found:
            module._gradient_checkpointing_func = functools.partial(_offloaded, module._gradient_checkpointing_func)
        return model


def _offloaded(checkpoint: Any, function: Any, *arguments: Any) -> Any:
    import torch
    from torch.autograd.graph import save_on_cpu

    with save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(function, *arguments)
