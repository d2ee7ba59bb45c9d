"""Contrastive preference optimization (Xu et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.trainer.preference.base import PreferenceTrainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.preference.sequence_logps import Pairs


@component(group="trainer", name="cpo")
class CPOTrainer(PreferenceTrainer):
    """Raises the probability of chosen answers over rejected ones, and that of chosen answers; without a reference."""

    alpha: HumanFloat = number(1.0, minimum=0)
    """Weight of the mean cross-entropy of the chosen answers."""

    @property
    def nll_weight(self) -> float:
        """Weight of the cross-entropy of the chosen answers."""
        return float(self.alpha)

    def pair_losses(self, pairs: Pairs, reference: Pairs | None) -> tuple[torch.Tensor, Pairs]:
        """Return -log s(beta (w - l)) of scores w and l, and beta times the scores."""
        from arctic_hydra.trainer.preference.losses import cpo

        return cpo(pairs, self.beta), pairs.scaled(self.beta)
