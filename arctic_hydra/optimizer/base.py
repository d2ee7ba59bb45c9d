"""Optimizer factories and the parameter groups that they share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import Component
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import HumanFloat, number

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class OptimizerFactory(Component):
    """Base of the optimizer factories."""

    state_bytes_per_parameter: ClassVar[int] = 8
    """Bytes of optimizer state per trained parameter, the master copy of the weights left out (Adam: two fp32 moments)."""

    runs_on_cpu: ClassVar[bool] = False
    """Whether it can step on the CPU while the model is on a GPU, as offloading needs."""

    @abstractmethod
    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer over the trainable parameters of `model`; raises ConfigError when there are none."""


@dataclass(kw_only=True)
class AdamFactory(OptimizerFactory):
    """The fields that every Adam shares."""

    lr: HumanFloat = number(5e-4, minimum=0)
    """Peak learning rate, per optimizer step."""
    weight_decay: HumanFloat = number(0.1, minimum=0)
    """Decoupled decay, on weights of two dimensions and more; biases and norms are never decayed."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of the two moments, each in [0, 1)."""
    eps: HumanFloat = number(1e-8, minimum=0)
    """Added to the denominator."""

    def validate(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)!r}, expected two numbers in [0, 1)")

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments common to all implementations."""
        return {"lr": self.lr, "betas": tuple(self.betas), "eps": self.eps}


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters by decay; empty groups are left out.

    Under ZeRO-3 a parameter's own shape is that of its shard, so the full shape is read from `ds_shape`.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("optimizer: the model has no trainable parameter; unfreeze some")
    decayed = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) >= 2]
    others = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
