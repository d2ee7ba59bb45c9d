"""DeepSpeed's AdamW for parameters on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import component
from arctic_hydra.optimizer.base import AdamFactory
from arctic_hydra.optimizer.deepspeed_ops import compiler_problems, optimizer_class

if TYPE_CHECKING:
    import torch


@component(group="optimizer", name="cpu_adam")
class CPUAdamFactory(AdamFactory):
    """AdamW vectorized for the CPU, for optimizer offloading; DeepSpeed compiles it on first use."""

    runs_on_cpu: ClassVar[bool] = True
    needs_offload: ClassVar[bool] = True

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if the extension cannot be compiled."""
        yield from compiler_problems("cpu_adam", needs_cuda=False)

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return DeepSpeed's `DeepSpeedCPUAdam` over the trainable parameters of `model`."""
        groups = self.parameter_groups(model, self.lr, self.weight_decay)
        return optimizer_class("DeepSpeedCPUAdam")(groups, **self.arguments())
