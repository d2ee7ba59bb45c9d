"""A stream cut into segments, each packed by itself; what fills no step goes on to the next.

A segment is the next `buffer_rows` rows. Its examples, and those that the segment before left over, are packed together;
the packs are shuffled, and as many as fill whole steps are trained on: those with an example that waits already, then the
fullest. The examples of the others wait. So every step has a full global batch, but for the last one of a pass where there
is one source, which takes all that is left: each pass then holds every example exactly once.

Everything follows from the seed and from where a segment begins, never from ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from arctic_hydra.data.arrays import Array, Ints
from arctic_hydra.data.documents import Chunk, SingleDocuments
from arctic_hydra.data.load.batches import BatchOptions
from arctic_hydra.data.load.order import epoch_order, grouped_order
from arctic_hydra.data.load.packing import Plan, plan_packs, plan_singles
from arctic_hydra.data.prepare.row_report import Report, nothing_left
from arctic_hydra.data.prepare.workers import Prepared, Task
from arctic_hydra.data.stream.sources import Cursor, SourceStream, next_rows
from arctic_hydra.errors import DataError


@dataclass(frozen=True)
class StreamOptions(BatchOptions):
    """How a stream becomes batches."""

    max_length: int
    prefetch_steps: int
    group_by_length: bool
    weights: tuple[float, ...]
    """Share of each source."""
    mix_by_tokens: bool
    buffer_rows: int


class Pool(SingleDocuments):
    """Examples in memory; fulfils the protocol `Examples`."""

    def __init__(self, ids: Array, masks: Array, lengths: Array, sources: Array, numbers: Ints) -> None:
        """Take int32 ids and uint8 masks of all examples one after another, and one value of the others for each."""
        self.all_ids, self.all_masks, self.lengths, self.sources, self.numbers = ids, masks, lengths, sources, numbers
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, index: int) -> Array:
        """Return the int32 token ids of one example."""
        return self.all_ids[self._starts[index] : self._starts[index + 1]]

    def mask(self, index: int) -> Array:
        """Return the uint8 mask of one example."""
        return self.all_masks[self._starts[index] : self._starts[index + 1]]

    def take(self, chosen: Ints) -> Pool:
        """Return copies of some examples."""
        ids = _joined((self.ids(int(one)) for one in chosen), np.int32)
        masks = _joined((self.mask(int(one)) for one in chosen), np.uint8)
        return Pool(ids, masks, self.lengths[chosen], self.sources[chosen], self.numbers[chosen])

    @classmethod
    def joined(cls, pools: Sequence[Pool]) -> Pool:
        """Return the examples of several pools."""
        return cls(
            _joined((pool.all_ids for pool in pools), np.int32),
            _joined((pool.all_masks for pool in pools), np.uint8),
            _joined((pool.lengths for pool in pools), np.int32),
            _joined((pool.sources for pool in pools), np.int32),
            _joined((pool.numbers for pool in pools), np.int64),
        )

    @classmethod
    def of_chunk(cls, chunk: Chunk, source: int, first_number: int) -> Pool:
        """Return the examples that were prepared together, numbered from `first_number` on."""
        count = len(chunk.lengths)
        sources = np.full(count, source, dtype=np.int32)
        return cls(chunk.ids, chunk.mask, chunk.lengths, sources, first_number + np.arange(count, dtype=np.int64))


def _joined(parts: Iterable[Array], dtype: Any) -> Array:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)


@dataclass(frozen=True)
class Place:
    """Where a stream stands between two segments, and what it has brought so far."""

    cursors: list[Cursor]
    waiting: Pool
    """Examples that the segments before left over."""
    reports: list[Report]
    length_counts: Array
    """int64 [sources, max_length + 1]: how many examples of each length were kept."""
    segment: int = 0
    step: int = 0
    """Steps before this place."""
    examples: int = 0
    """Examples that were read before this place."""
    packs: int = 0
    packed_tokens: int = 0

    @classmethod
    def start(cls, sources: int, max_length: int) -> Place:
        """Return the beginning of a stream."""
        counts = np.zeros((sources, max_length + 1), dtype=np.int64)
        return cls([Cursor()] * sources, Pool.joined([]), [Report() for _ in range(sources)], counts)

    def state_dict(self) -> dict[str, Any]:
        """Return the place as tensors, numbers, lists and dicts."""
        pool = self.waiting
        arrays = {"ids": pool.all_ids, "masks": pool.all_masks, "lengths": pool.lengths, "sources": pool.sources}
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "cursors": [cursor.plain() for cursor in self.cursors],
            "reports": [report.plain() for report in self.reports],
            "length_counts": torch.from_numpy(self.length_counts),
            "waiting": {name: torch.from_numpy(array) for name, array in {**arrays, "numbers": pool.numbers}.items()},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Place:
        """Return the place that `state_dict()` made this state of."""
        pool = {name: tensor.numpy() for name, tensor in state["waiting"].items()}
        return cls(
            [Cursor.from_plain(plain) for plain in state["cursors"]],
            Pool(pool["ids"], pool["masks"], pool["lengths"], pool["sources"], pool["numbers"]),
            [Report.from_plain(plain) for plain in state["reports"]],
            state["length_counts"].numpy(),
            **{name: state[name] for name in _COUNTERS},
        )


_COUNTERS = ("segment", "step", "examples", "packs", "packed_tokens")


@dataclass(frozen=True)
class Segment:
    """What is trained on between two places: packs of a pool of examples, in order."""

    pool: Pool
    plan: Plan
    order: Ints
    start: Place
    end: Place


def read_segment(
    place: Place,
    streams: Sequence[SourceStream],
    prepare: Callable[[Iterable[Task]], Iterator[Prepared]],
    options: StreamOptions,
    batch: int,
    seed: int,
) -> Segment:
    """Return the segment that begins at `place`; `batch` is the global batch in packs.

    Raises DataError when a source cannot be read, or has had a whole pass without an example.
    """
    alone = len(streams) == 1
    tasks, cursors = _read_rows(place, streams, options)
    read, new = _prepared(place, tasks, prepare)
    for stream, before, after, report in zip(streams, place.cursors, cursors, read.reports, strict=True):
        if after.passes > before.passes and report.kept == 0:
            raise DataError(nothing_left(stream.key, report))
    pool = Pool.joined([place.waiting, *new])
    # Packing goes by length; which of the examples of one length goes where is drawn here.
    drawn = epoch_order(len(pool), seed + 1, place.segment)
    plan = (plan_packs if options.packing else plan_singles)(pool.lengths[drawn], options.max_length)
    plan = replace(plan, examples=drawn[plan.examples])
    ends = alone and cursors[0].passes > place.cursors[0].passes
    kept = np.arange(len(plan)) if ends else _full_steps(plan, pool.lengths, len(place.waiting), batch)
    if options.group_by_length:
        order = kept[grouped_order(pool.lengths[plan.examples[kept]], batch, seed, place.segment)]
    else:
        order = kept[epoch_order(len(kept), seed, place.segment)]
    left = np.setdiff1d(np.arange(len(plan)), kept)
    waiting = pool.take(np.sort(_examples_of(plan, left)))
    end = replace(
        read,
        cursors=cursors,
        waiting=waiting,
        segment=place.segment + 1,
        step=place.step + -(-len(kept) // batch),
        packs=place.packs + len(kept),
        packed_tokens=place.packed_tokens + int(pool.lengths.sum()) - int(waiting.lengths.sum()),
    )
    return Segment(pool, plan, order, place, end)


def _read_rows(
    place: Place, streams: Sequence[SourceStream], options: StreamOptions
) -> tuple[list[Task], list[Cursor]]:
    """Return the rows of the next segment as tasks, and where each source stands after them."""
    alone = len(streams) == 1
    rows = [report.rows for report in place.reports]
    sizes = [report.tokens if options.mix_by_tokens else report.kept for report in place.reports]
    counts = [options.buffer_rows] if alone else next_rows(options.weights, rows, sizes, options.buffer_rows)
    tasks, cursors = [], []
    for index, (stream, cursor, count) in enumerate(zip(streams, place.cursors, counts, strict=True)):
        passes = cursor.passes
        while count and not (alone and cursor.passes > passes):
            pieces, cursor = stream.read(cursor, count)
            tasks += [Task(index, 0, len(piece), piece) for piece in pieces]
            count -= sum(len(piece) for piece in pieces)
        cursors.append(cursor)
    return tasks, cursors


def _prepared(
    place: Place, tasks: Sequence[Task], prepare: Callable[[Iterable[Task]], Iterator[Prepared]]
) -> tuple[Place, list[Pool]]:
    """Return the place with what the tasks bring counted in, and their examples."""
    reports = [Report() for _ in place.reports]
    counts, examples, new = place.length_counts.copy(), place.examples, []
    for report, before in zip(reports, place.reports, strict=True):
        report.add(before)
    for task, (chunk, report) in zip(tasks, prepare(tasks), strict=True):
        reports[task.source].add(report)
        counts[task.source] += np.bincount(chunk.lengths, minlength=counts.shape[1])
        new.append(Pool.of_chunk(chunk, task.source, examples))
        examples += len(chunk.lengths)
    return replace(place, reports=reports, length_counts=counts, examples=examples), new


def _full_steps(plan: Plan, lengths: Array, waiting: int, batch: int) -> Ints:
    """Return as many packs as fill whole steps: those with one of the first `waiting` examples first, then the fullest."""
    count = len(plan) // batch * batch
    if not count:
        return np.empty(0, dtype=np.int64)
    starts = plan.bounds[:-1]
    tokens = np.add.reduceat(lengths[plan.examples], starts)
    waits = np.logical_or.reduceat(plan.examples < waiting, starts)
    return np.sort(np.lexsort((-tokens, ~waits))[:count])


def _examples_of(plan: Plan, packs: Ints) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *(plan.pack(int(pack)) for pack in packs)])
