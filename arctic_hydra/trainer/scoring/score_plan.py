"""Plans which documents a frozen model scores together, independently of the number of ranks and of interruptions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from arctic_hydra.data.arrays import Array, Ints
from arctic_hydra.data.base import BatchGeometry, Loader
from arctic_hydra.data.batch import Batch
from arctic_hydra.data.documents import SingleDocuments
from arctic_hydra.data.load.batches import BatchOptions, StepBatches, empty_batch
from arctic_hydra.data.load.loader import LoaderOptions, PackedLoader
from arctic_hydra.data.load.packing import Plan
from arctic_hydra.data.load.sequence_parallel import ShardedLoader
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError

BATCHES_PER_PART = 64
_BYTES_PER_PART = 2**27
"""Records of large size are in smaller parts, of at least one batch: a part is read as a whole to verify it."""
MISMATCHED = "mismatched pairs"
"""Name of the plan of what `Batch.mismatched` holds."""


class ScorableDocuments(Protocol):
    """Documents that can be scored, such as a `TokenStore`."""

    lengths: Array

    @property
    def key(self) -> str:
        """Hash of their content."""

    @property
    def predicted(self) -> Array:
        """Number of supervised positions of each in a batch."""

    def ids(self, index: int) -> Array:
        """Return the int32 token ids of one document."""

    def mask(self, index: int) -> Array:
        """Return the uint8 mask of one document."""


class _OneSource(SingleDocuments):
    """Documents as the examples of a single source."""

    def __init__(self, documents: ScorableDocuments) -> None:
        self.lengths, self.ids, self.mask = documents.lengths, documents.ids, documents.mask
        self.sources: Array = np.zeros(len(self.lengths), np.int32)


@dataclass(frozen=True)
class ScorePlan:
    """The batches and the parts in which the documents of one source are scored."""

    name: str
    """The source."""
    documents: ScorableDocuments
    options: LoaderOptions
    record_bytes: int = 4
    """Size of what is stored for each supervised position."""

    def __len__(self) -> int:
        return len(self.documents.lengths)

    @cached_property
    def bounds(self) -> Ints:
        """First document of each batch, and the number of documents."""
        return batch_bounds(self.documents.lengths, self.options.pack_tokens, packing=self.options.packing)

    @cached_property
    def record_starts(self) -> Array:
        """Index of the first record of each document, and the number of records."""
        return np.concatenate([[0], np.cumsum(self.documents.predicted)])

    @property
    def _batches_per_part(self) -> int:
        return min(BATCHES_PER_PART, max(1, _BYTES_PER_PART // (self.record_bytes * self.options.pack_tokens)))

    @property
    def part_bounds(self) -> Ints:
        """First document of each part, and the number of documents."""
        return np.unique(np.append(self.bounds[: -1 : self._batches_per_part], self.bounds[-1:]))

    @property
    def sizes(self) -> list[int]:
        """Records of each part."""
        return np.diff(self.record_starts[self.part_bounds]).tolist()  # type: ignore[no-any-return]

    def batches_of(self, part: int) -> range:
        """Return the indices of the batches of a part."""
        first = part * self._batches_per_part
        return range(first, min(first + self._batches_per_part, len(self.bounds) - 1))

    @cached_property
    def _batches(self) -> StepBatches:
        store = _OneSource(self.documents)
        plan = Plan(np.arange(len(self)), self.bounds, int(store.lengths.sum()), self.options.pack_tokens)
        geometry = BatchGeometry(1, 1, World(), 0)
        return StepBatches(
            store, plan, np.arange(len(plan)), geometry, BatchOptions(self.options.packing, self.options.pad_token_id)
        )

    def batch(self, index: int) -> Batch:
        """Return one batch; beyond the last, one without documents."""
        if index >= len(self.bounds) - 1:
            return empty_batch(self.options.pad_token_id, self.options.packing)
        return self._batches.step_batch(index).micro_batches[0]


def batch_bounds(lengths: Array, capacity: int, *, packing: bool) -> Ints:
    """Return the bounds of consecutive documents with at most `capacity` tokens together, padding included."""
    bounds, tokens, longest = [0], 0, 0
    for index, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        size = tokens + length if packing else (index - bounds[-1] + 1) * longest
        if size > capacity and index > bounds[-1]:
            bounds.append(index)
            tokens, longest = 0, length
        tokens += length
    return np.array([*bounds, len(lengths)] if len(lengths) else [0])


def plans_of(loader: Loader, record_bytes: int = 4) -> list[ScorePlan]:
    """Return the plan of each source of a loader, and of the mismatched pairs of labelled data, for records of that size.

    Raises ConfigError if its documents are not kept on disk as they are trained on.
    """
    inner = packed_loader(loader)
    options = inner.options
    for field in ("always_max_length", "fuse_positions_prob"):
        if value := getattr(options, field):
            raise ConfigError(
                f"data.{field}: got {value}, with which examples are trained on in another context than the one in which they were "
                "scored; remove it, or train without stored scores"
            )
    parts = inner.documents.parts
    plans = [ScorePlan(name, part, options, record_bytes) for name, part in zip(inner.source_names, parts, strict=True)]
    if inner.mismatched is not None:
        plans.append(ScorePlan(MISMATCHED, inner.mismatched, options, record_bytes))
    return plans


def packed_loader(loader: Loader) -> PackedLoader:
    """Return the loader that reads the tokenized documents. Raises ConfigError for a loader that keeps none."""
    inner = loader.whole if isinstance(loader, ShardedLoader) else loader
    if not isinstance(inner, PackedLoader):
        raise ConfigError(
            f"data: its loader ({type(inner).__name__}) keeps no tokenized documents that could be scored before training; pass "
            "data.streaming=false, or train without stored scores"
        )
    return inner
