"""Simple preference optimization (Meng et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.trainer.preference.base import PreferenceTrainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.preference.sequence_logps import Pairs


@component(group="trainer", name="simpo")
class SimPOTrainer(PreferenceTrainer):
    """Raises the mean log-probability of chosen answers over that of rejected ones by a margin; without a reference."""

    beta: HumanFloat = number(2.0, minimum=0)
    """Scale of the differences of mean log-probabilities; above 0."""
    gamma: HumanFloat = number(0.5, minimum=0)
    """The margin, in units of beta times a mean log-probability."""

    def pair_losses(self, pairs: Pairs, reference: Pairs | None) -> tuple[torch.Tensor, Pairs]:
        """Return -log s(beta (w - l) - gamma) of mean log-probabilities w and l, and beta times these."""
        from arctic_hydra.trainer.preference.losses import simpo

        return simpo(pairs, self.beta, self.gamma), pairs.means().scaled(self.beta)
