"""The option without an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import component
from arctic_hydra.converter.peft.base import PeftSlot

if TYPE_CHECKING:
    import torch


@component(group="peft", name="none")
class NoPeft(PeftSlot):
    """No adapter: the model itself trains."""

    adapts: ClassVar[bool] = False

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model unchanged."""
        return model
