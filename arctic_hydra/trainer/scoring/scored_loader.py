"""A loader whose batches hold the stored scores of their supervised positions.

Shapes: K supervised positions, n numbers of one column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arctic_hydra.data.base import Example, Loader
from arctic_hydra.data.batch import Batch, StepBatch
from arctic_hydra.errors import DataError
from arctic_hydra.trainer.scoring.score_plan import MISMATCHED, ScorePlan
from arctic_hydra.trainer.scoring.score_store import Entry, Records


@dataclass(frozen=True)
class Scores:
    """The complete scores of one source."""

    plan: ScorePlan
    entry: Entry
    parts: list[Records]

    def of(self, document: int) -> Records:
        """Return the records of the supervised positions of one document of the source, in order."""
        part = int(np.searchsorted(self.plan.part_bounds, document, side="right")) - 1
        starts = self.plan.record_starts
        first = int(starts[self.plan.part_bounds[part]])
        return self.parts[part][int(starts[document]) - first : int(starts[document + 1]) - first]


class ScoredLoader:
    """The batches of another loader with the records of their positions in `Batch.stored`; implements `data.base.Loader`."""

    def __init__(self, loader: Loader, sources: Sequence[Scores]) -> None:
        """`sources` are the scores of the loader's sources, in order, and of its mismatched pairs, if it has any."""
        self._loader, self._all = loader, sources
        self._sources = [scores for scores in sources if scores.plan.name != MISMATCHED]
        self._mismatched = [scores for scores in sources if scores.plan.name == MISMATCHED]
        self.fingerprint, self.source_names = loader.fingerprint, loader.source_names

    @property
    def paths(self) -> list[Path]:
        """The directories of the scores."""
        return [scores.entry.path for scores in self._all]

    def steps(self, epoch: int) -> int:
        """Optimizer steps in `epoch`."""
        return self._loader.steps(epoch)

    def windows(self, epoch: int, start: int = 0) -> Iterator[StepBatch]:
        """Yield this rank's batches of each step of `epoch` from step `start` on."""
        for window in self._loader.windows(epoch, start):
            yield replace(window, micro_batches=[self._with_scores(batch) for batch in window.micro_batches])

    def preview(self, count: int) -> list[Example]:
        """Return up to `count` examples of each source."""
        return self._loader.preview(count)

    def summary(self) -> dict[str, Any]:
        """Return the statistics of the data."""
        return self._loader.summary()

    def _with_scores(self, batch: Batch) -> Batch:
        with_scores = _attach(batch, self._sources)
        if batch.mismatched is not None:
            with_scores.mismatched = _attach(batch.mismatched, self._mismatched)
        return with_scores


def _attach(batch: Batch, sources: Sequence[Scores]) -> Batch:
    """Return the batch with the records of its documents, which are numbered through all `sources`."""
    dtype = sources[0].entry.dtype
    starts = np.cumsum([0, *(len(scores.plan) for scores in sources)])
    places = np.searchsorted(starts, batch.example_ids, side="right") - 1
    found = [
        sources[place].of(document - int(starts[place]))
        for document, place in zip(batch.example_ids, places.tolist(), strict=True)
    ]
    records_K = np.concatenate([np.empty(0, dtype), *found])
    if len(records_K) != batch.num_supervised:
        raise DataError(
            f"data: a batch has {batch.num_supervised} supervised positions, but {len(records_K)} scores are stored for its "
            "documents; train without stored scores"
        )
    columns = {name: torch.from_numpy(np.ascontiguousarray(records_K[name])) for name in dtype.names or ()}
    if batch.targets_K.is_pinned():
        columns = {name: column.pin_memory() for name, column in columns.items()}
    return replace(batch, stored=columns)
