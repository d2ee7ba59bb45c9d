"""Direct preference optimization (Rafailov et al. 2023) and the losses of its family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import TYPE_CHECKING, Any

from arctic_hydra.component import component
from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import FieldError, did_you_mean
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.trainer.preference.base import PreferenceTrainer
from arctic_hydra.trainer.preference.choices import PAIR_LOSS_NAMES, PER_TOKEN, SMOOTHED
from arctic_hydra.trainer.preference.reference import ReferenceTrainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.preference.sequence_logps import Pairs

_SFT = "sft"
_EXO_SMOOTHING = 1e-3


@component(group="trainer", name="dpo")
class DPOTrainer(ReferenceTrainer, PreferenceTrainer):
    """Raises the probability of chosen answers over rejected ones, relative to a reference model."""

    loss_type: Any = "sigmoid"
    """sigmoid (DPO; with label smoothing cDPO), sigmoid_norm, ipo, hinge, robust, apo_zero, apo_down, exo_pair; or a list of
    them, to which sft adds the cross-entropy of the chosen answers."""
    loss_weights: list[float] = field(default_factory=list)
    """Weight of each loss in `loss_type`; 1 for each if empty."""
    label_smoothing: HumanFloat | None = number(None, minimum=0, maximum=1)
    """Assumed share of pairs with swapped labels, below 0.5: for sigmoid, robust and exo_pair. Unset: 0, for exo_pair 0.001."""
    ld_alpha: HumanFloat | None = number(None, minimum=0, maximum=1)
    """Weight of the tokens beyond the length of the pair's shorter answer (LD-DPO); unset: 1."""

    def validate(self) -> None:
        """Check the losses and their settings."""
        super().validate()
        problems = list(self._problems())
        if problems:
            raise FieldError(problems)

    @property
    def loss_types(self) -> list[str]:
        """The losses that are added up."""
        return list(self.loss_type) if isinstance(self.loss_type, list) else [self.loss_type]

    @property
    def nll_weight(self) -> float:
        """Weight of the cross-entropy of the chosen answers."""
        return sum(weight for name, weight in self._weighted() if name == _SFT)

    @property
    def tail_weight(self) -> float | None:
        """Weight of the tokens beyond the length of the pair's shorter answer: `ld_alpha`."""
        return None if self.ld_alpha is None else float(self.ld_alpha)

    def reference_pairs(self, batch: Batch) -> Pairs:
        """Return the scores under the reference."""
        return self.score(batch, self.reference_logps(batch))

    def pair_losses(self, pairs: Pairs, reference: Pairs | None) -> tuple[torch.Tensor, Pairs]:
        """Return the weighted sum of the losses of each pair, and beta times the scores less those of the reference."""
        import torch

        from arctic_hydra.trainer.preference.losses import PAIR_LOSSES

        assert reference is not None
        gained = pairs.less(reference)
        losses_P = [
            weight * PAIR_LOSSES[name](gained, self.beta, self._smoothing(name))
            for name, weight in self._weighted()
            if name != _SFT
        ]
        return torch.stack(losses_P).sum(0), gained.scaled(self.beta)

    def _weighted(self) -> Iterator[tuple[str, float]]:
        return zip(self.loss_types, self.loss_weights or [1.0] * len(self.loss_types), strict=True)

    def _smoothing(self, name: str) -> float:
        if self.label_smoothing is None:
            return _EXO_SMOOTHING if name == "exo_pair" else 0.0
        return float(self.label_smoothing)

    def _problems(self) -> Iterator[tuple[str, str]]:
        names, known = self.loss_types, [*PAIR_LOSS_NAMES, _SFT]
        for name in names:
            if name not in known:
                near = did_you_mean(name, known) if isinstance(name, str) else ""
                yield "loss_type", f"got {name}, expected one or a list of {', '.join(known)}{near}"
                return
        if len(set(names)) < len(names) or not set(names) - {_SFT}:
            yield (
                "loss_type",
                f"got {names}, expected at least one loss of pairs, each once; for sft alone pass trainer=sft",
            )
            return
        if self.loss_weights and len(self.loss_weights) != len(names):
            yield (
                "loss_weights",
                f"got {len(self.loss_weights)} weights for {len(names)} losses in loss_type, expected one for each",
            )
        elif any(not weight > 0 or weight == float("inf") for weight in self.loss_weights):
            yield "loss_weights", f"got {self.loss_weights}, expected finite numbers above 0"
        yield from self._smoothing_problems([name for name in names if name != _SFT])
        if self.ld_alpha is not None and (found := sorted(PER_TOKEN.intersection(names))):
            yield (
                "ld_alpha",
                f"got {self.ld_alpha:g}, but {found[0]} takes the mean over tokens, not their sum; leave it unset",
            )

    def _smoothing_problems(self, names: list[str]) -> Iterator[tuple[str, str]]:
        smoothing = self.label_smoothing
        if smoothing is None:
            return
        if without := [name for name in names if name not in SMOOTHED]:
            yield (
                "label_smoothing",
                f"got {smoothing:g}, but {without[0]} has none; leave it unset, or use {', '.join(sorted(SMOOTHED))}",
            )
        elif "exo_pair" in names and not 0 < smoothing < 0.5:
            yield (
                "label_smoothing",
                f"got {smoothing:g}, expected above 0 and below 0.5 for exo_pair, whose loss takes its logarithm",
            )
        elif smoothing >= 0.5:
            yield (
                "label_smoothing",
                f"got {smoothing:g}, expected below 0.5: at half, a pair does not say which answer is better",
            )
