"""Supervised fine-tuning: next-token cross-entropy on the tokens that the data marks as supervised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.batch import Batch
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.trainer.parts.head_loss import HeadLoss, HeadLossTrainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.chunked import TokenLoss
    from arctic_hydra.trainer.toolbox import Toolbox


@component(group="trainer", name="sft")
class SFTTrainer(HeadLossTrainer):
    """Trains on the assistant's answers."""

    label_smoothing: HumanFloat = number(0.0, minimum=0, maximum=1)
    """Share of the target probability that is spread over the vocabulary; training only."""
    z_loss: HumanFloat = number(0.0, minimum=0)
    """Weight of the squared logsumexp of each token's logits (PaLM: 1e-4); training only."""

    data: ClassVar[SFTDataFactory]

    def setup(self, tools: Toolbox) -> None:
        """Receive the tools of the run; raise ConfigError for settings that the model's own loss would ignore. Collective."""
        if self._own_loss(tools.engine.module) is not None:
            self._check_own_loss()
        super().setup(tools)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the token losses summed over the supervised tokens of the micro-batch."""
        return self._losses.loss_sum(batch)

    def probed_loss(self, batch: Batch) -> torch.Tensor:
        """Return `loss`, also that of a subclass, without the load-balancing loss of a mixture of experts, which is over all tokens."""
        losses = self._losses
        self._losses = replace(losses, balance=None)
        try:
            return self.loss(batch)
        finally:
            self._losses = losses

    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return plain cross-entropy, correct tokens and count per source, float64 [num_sources, 3]."""
        return self._losses.evaluation_sums(batch, num_sources)

    def _token_loss(self) -> TokenLoss:
        from arctic_hydra.trainer.chunked import TokenLoss

        return TokenLoss(self.label_smoothing, self.z_loss)

    def _own_loss(self, model: torch.nn.Module) -> Callable[..., torch.Tensor] | None:
        return getattr(model, "token_loss", None)

    def _check_own_loss(self) -> None:
        """Raise ConfigError for settings that a model with a loss of its own would ignore."""
        usual = {"label_smoothing": 0.0, "z_loss": 0.0}
        ignored = [
            f"trainer.{name}={getattr(self, name):g}" for name, value in usual.items() if getattr(self, name) != value
        ]
        if self.head_loss not in (HeadLoss.auto, HeadLoss.full):
            ignored.append(f"trainer.head_loss={self.head_loss.name}")
        if ignored:
            raise ConfigError(
                f"model.spec: this model brings its own loss, which ignores {', '.join(ignored)}; leave it out"
            )
