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
    """What a converter does; a converter never runs before one of an earlier phase."""

    modules = 0
    """Changes or replaces modules."""
    trainable = 1
    """Chooses which parameters train."""
    adapters = 2
    """Freezes the model and adds adapters."""


@dataclass(kw_only=True)
class ModelConverter(Component):
    """Base of the converters; they run in the order of the config, `peft` last."""

    phase: ClassVar[Phase] = Phase.modules
    """What this converter does; the order of phases is checked."""

    @abstractmethod
    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the converted model: the same object changed in place, or a wrapper."""

    def without_rounding(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Return a context in which `model` computes without this converter's rounding, for probes of the model."""
        return nullcontext()

    def post_optimizer_hook(self, model: torch.nn.Module) -> None:
        """Act on the model after each real optimizer step; called by the training loop once per step, at every ZeRO stage.

        Read and change weights in `self.trainer.weights(...)`: at ZeRO-3 the parameters of `model` are empty here, and at any
        stage but ZeRO-0 in fp32 the next step would undo a change to them.
        """
