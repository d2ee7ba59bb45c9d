"""DeepSpeed's fused AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.distributed import count_gpus
from arctic_hydra.optimizer.base import AdamFactory
from arctic_hydra.optimizer.deepspeed_ops import compiler_problems, optimizer_class

if TYPE_CHECKING:
    import torch


@component(group="optimizer", name="fused_adam")
class FusedAdamFactory(AdamFactory):
    """AdamW in DeepSpeed's fused kernel, which is compiled on first use."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if the kernel cannot be compiled."""
        yield from compiler_problems("fused_adam", needs_cuda=count_gpus() > 0)

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return DeepSpeed's `FusedAdam` over the trainable parameters of `model`."""
        groups = self.parameter_groups(model, self.lr, self.weight_decay)
        return optimizer_class("FusedAdam")(groups, **self.arguments())
