"""Odds ratio preference optimization (Hong et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import component
from arctic_hydra.trainer.preference.base import PreferenceTrainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.preference.sequence_logps import Pairs


@component(group="trainer", name="orpo")
class ORPOTrainer(PreferenceTrainer):
    """Fine-tunes on chosen answers, and raises their odds over those of rejected ones; without a reference."""

    own_figures: ClassVar[tuple[str, ...]] = ("log_odds_ratio", "log_odds_chosen")
    evaluation_columns: ClassVar[int] = PreferenceTrainer.evaluation_columns + len(own_figures)

    @property
    def nll_weight(self) -> float:
        """Weight of the cross-entropy of the chosen answers: the loss is that of fine-tuning plus beta times the odds term."""
        return 1.0

    def pair_losses(self, pairs: Pairs, reference: Pairs | None) -> tuple[torch.Tensor, Pairs]:
        """Return -beta log s(log odds ratio), and beta times the mean log-probabilities."""
        from torch.nn.functional import logsigmoid

        from arctic_hydra.trainer.preference.losses import log_odds_ratio

        return -self.beta * logsigmoid(log_odds_ratio(pairs)), pairs.means().scaled(self.beta)

    def more_figures(self, pairs: Pairs) -> tuple[torch.Tensor, ...]:
        """Return log s(log odds ratio), which the loss raises, and the log odds ratio, by the names of TRL."""
        from torch.nn.functional import logsigmoid

        from arctic_hydra.trainer.preference.losses import log_odds_ratio

        odds_P = log_odds_ratio(pairs)
        return logsigmoid(odds_P), odds_P
