"""The reference of a preference loss: the model that the policy is compared with, which is not trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from arctic_hydra.trainer.head import unwrap
from arctic_hydra.trainer.loss import LossComputer


@dataclass(frozen=True)
class Reference:
    """A frozen copy of the model, or the trained model with its adapter disabled."""

    losses: LossComputer
    disabled: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Disables the adapter of the model."""
    checksum: str = ""
    """Of the weights of a copy."""

    def token_losses(self, batch: Any) -> torch.Tensor:
        """Return the loss of each supervised token, fp32 [K], without dropout and without a graph. Collective."""
        engine = self.losses.engine
        was_training = engine.training
        engine.eval()
        with torch.no_grad(), self.disabled():
            losses_K = self.losses.losses(batch)[0]
        engine.train(was_training)
        return losses_K


def why_not_adapter_off(model: torch.nn.Module) -> str:
    """Return why the model with its adapter disabled cannot be the reference; empty if it can."""
    inner: Any = unwrap(model)
    if not hasattr(inner, "disable_adapter"):
        return "the model has no adapter"
    head = inner.get_output_embeddings()
    if hasattr(head, "modules_to_save") or getattr(head, "token_adapter", None) is not None:
        return "the adapter replaces the output head"
    # Weights of the model itself, such as biases with peft.bias=all, stay trained with the adapter disabled.
    parameters = dict(inner.named_parameters())
    if own := [name for name in names_without_adapter(inner) if parameters[name].requires_grad]:
        return f"the run also trains weights of the model itself, such as {own[0]}"
    return ""


def names_without_adapter(inner: Any) -> list[str]:
    """Return the names of the parameters that a model with an adapter uses when the adapter is disabled."""
    added = (getattr(inner.base_model, "prefix", None) or "\0", "modules_to_save.", "token_adapter.")
    return [name for name, _ in inner.named_parameters() if not any(part in name for part in added)]
