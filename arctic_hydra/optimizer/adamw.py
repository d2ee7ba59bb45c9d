"""torch's AdamW, fused."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import component
from arctic_hydra.optimizer.base import AdamFactory

if TYPE_CHECKING:
    import torch


@component(group="optimizer", name="adamw")
class AdamWFactory(AdamFactory):
    """AdamW (Loshchilov and Hutter 2019) in torch's fused implementation, on CPU and CUDA."""

    runs_on_cpu: ClassVar[bool] = True

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return `torch.optim.AdamW` over the parameter groups of `model`."""
        import torch

        return torch.optim.AdamW(
            self.parameter_groups(model, self.lr, self.weight_decay), fused=True, **self.arguments()
        )
