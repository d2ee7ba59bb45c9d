"""Model converters: changes to a model after its creation and before the engine wraps it."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import Component

if TYPE_CHECKING:
    import torch


class Phase(IntEnum):
    """What a converter does; one of a later phase never runs before one of an earlier phase."""

    modules = 0
    """Changes or replaces modules."""
    trainable = 1
    """Chooses which parameters train."""
    adapters = 2
    """Freezes the model and puts adapters on top."""


@dataclass(kw_only=True)
class ModelConverter(Component):
    """Base of the converters; they run in the order in which they are chosen, `peft` last."""

    phase: ClassVar[Phase] = Phase.modules
    """What this converter does, by which the order is checked."""

    @abstractmethod
    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the converted model: the same object changed in place, or a wrapper."""

    def exactly(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Return a context in which `model` computes without any rounding of this converter: probes look at it there."""
        return nullcontext()

    def post_optimizer_hook(self, model: torch.nn.Module) -> None:
        """Act on the model after each real optimizer step; the loop calls it, once per step at every ZeRO stage."""
