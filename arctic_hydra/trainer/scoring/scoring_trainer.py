"""Base of the trainers that can compute and store the scores of a frozen model before training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from arctic_hydra.files.ownership import unwritable
from arctic_hydra.trainer.parts.head_loss import HeadLossTrainer


@dataclass(kw_only=True)
class ScoringTrainer(HeadLossTrainer):
    """A trainer with a frozen model whose scores can be computed once: log-probabilities of a reference, or tokens of a teacher."""

    scores_dir: str | None = None
    """Directory of what is stored before training (`cached`, `task=score`); that of the data cache when unset."""

    can_store_scores: ClassVar[bool] = True
    score_settings: ClassVar[tuple[str, ...]] = ("scores_dir",)
    excluded_from_id: ClassVar[frozenset[str]] = HeadLossTrainer.excluded_from_id | {"scores_dir"}

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if `scores_dir` cannot be written."""
        yield from unwritable("scores_dir", self.scores_dir)
        yield from super().check_environment()

    @property
    def scores_directory(self) -> Path:
        """The directory of what is stored, after `setup`."""
        return self.tools.scores_directory(self.scores_dir)
