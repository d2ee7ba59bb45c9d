"""A stream divided into segments that are packed separately; examples that do not fill a step move to the next segment.

A segment is the next `buffer_rows` rows, or fewer if the run ends before it needs them. Their examples, and those left over
from the previous segment, are packed together and the packs are shuffled. As many packs as fill whole steps are used:
first those with a left-over example, then the fullest. The examples of the other packs are left over. So every step has a
full global batch, except the last step of a pass over a single source, which takes all remaining packs: each pass then
contains every example exactly once.

The result depends on the seed and on the start of the segment, not on ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from arctic_hydra.data.arrays import Array, Ints
from arctic_hydra.data.documents import Chunk, SingleDocuments
from arctic_hydra.data.load.batches import BatchOptions
from arctic_hydra.data.load.order import epoch_order, grouped_order
from arctic_hydra.data.load.packing import Plan, plan_packs, plan_singles
from arctic_hydra.data.prepare.row_report import RowReport, no_examples_message
from arctic_hydra.data.prepare.workers import RowTask, TaskRunner
from arctic_hydra.data.stream.sources import Cursor, SourceStream, next_rows
from arctic_hydra.errors import DataError

MARGIN = 1.2
"""Rows that the last segment of a run reads, per row that it is expected to need."""


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


class ExamplePool(SingleDocuments):
    """Examples in memory; implements the protocol `Examples`."""

    def __init__(self, ids: Array, masks: Array, lengths: Array, sources: Array, numbers: Ints) -> None:
        """Take the concatenated int32 ids and uint8 masks of all examples, and the other arrays with one value per example."""
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

    def take(self, chosen: Ints) -> ExamplePool:
        """Return copies of the chosen examples."""
        ids = _concatenated((self.ids(int(one)) for one in chosen), np.int32)
        masks = _concatenated((self.mask(int(one)) for one in chosen), np.uint8)
        return ExamplePool(ids, masks, self.lengths[chosen], self.sources[chosen], self.numbers[chosen])

    @classmethod
    def concatenate(cls, pools: Sequence[ExamplePool]) -> ExamplePool:
        """Return the examples of several pools."""
        return cls(
            _concatenated((pool.all_ids for pool in pools), np.int32),
            _concatenated((pool.all_masks for pool in pools), np.uint8),
            _concatenated((pool.lengths for pool in pools), np.int32),
            _concatenated((pool.sources for pool in pools), np.int32),
            _concatenated((pool.numbers for pool in pools), np.int64),
        )

    @classmethod
    def from_chunk(cls, chunk: Chunk, source: int, first_number: int) -> ExamplePool:
        """Return the examples of a chunk, numbered from `first_number` on."""
        count = len(chunk.lengths)
        sources = np.full(count, source, dtype=np.int32)
        return cls(chunk.ids, chunk.mask, chunk.lengths, sources, first_number + np.arange(count, dtype=np.int64))


def _concatenated(parts: Iterable[Array], dtype: Any) -> Array:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)


@dataclass(frozen=True)
class StreamState:
    """The state of a stream between two segments: its position, the left-over examples and the counts so far."""

    cursors: list[Cursor]
    left_over: ExamplePool
    """Examples left over from previous segments."""
    reports: list[RowReport]
    length_counts: Array
    """int64 [sources, max_length + 1]: number of kept examples of each length."""
    segment: int = 0
    step: int = 0
    """Steps up to this state."""
    examples: int = 0
    """Examples that were read up to this state."""
    packs: int = 0
    packed_tokens: int = 0
    last_step: int = 0
    """Steps of the run, for which the next segment reads no more rows than it needs; 0: unknown, it reads `buffer_rows`. It is
    part of the state so that a resumed segment has the same rows, also one of a version that always read `buffer_rows`."""
    units_per_row: float = 0.0
    """Tokens, or examples if they are not packed, that a row gave when the stream was opened."""

    @classmethod
    def start(cls, sources: int, max_length: int, last_step: int = 0) -> StreamState:
        """Return the state at the start of a stream."""
        counts = np.zeros((sources, max_length + 1), dtype=np.int64)
        reports = [RowReport() for _ in range(sources)]
        return cls([Cursor()] * sources, ExamplePool.concatenate([]), reports, counts, last_step=last_step)

    def rows_wanted(self, options: StreamOptions, batch: int) -> int:
        """Return how many rows the next segment reads: `buffer_rows`, or about as many as the rest of the run needs."""
        packed, rows = options.packing, sum(report.rows for report in self.reports)
        units = sum(report.tokens if packed else report.kept for report in self.reports)
        per_row = units / rows if units else self.units_per_row
        if not self.last_step or not per_row:
            return options.buffer_rows
        needed = (self.last_step - self.step) * batch * (options.max_length if packed else 1)
        needed -= int(self.left_over.lengths.sum()) if packed else len(self.left_over)
        return min(options.buffer_rows, max(batch, math.ceil(MARGIN * needed / per_row)))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, lists and dicts."""
        pool = self.left_over
        arrays = {"ids": pool.all_ids, "masks": pool.all_masks, "lengths": pool.lengths, "sources": pool.sources}
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "cursors": [cursor.to_dict() for cursor in self.cursors],
            "reports": [report.to_dict() for report in self.reports],
            "length_counts": torch.from_numpy(self.length_counts),
            "waiting": {name: torch.from_numpy(array) for name, array in {**arrays, "numbers": pool.numbers}.items()},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> StreamState:
        """Return the state with these values, as `state_dict()` returns them."""
        pool = {name: tensor.numpy() for name, tensor in state["waiting"].items()}
        return cls(
            [Cursor.from_dict(plain) for plain in state["cursors"]],
            ExamplePool(pool["ids"], pool["masks"], pool["lengths"], pool["sources"], pool["numbers"]),
            [RowReport.from_dict(plain) for plain in state["reports"]],
            state["length_counts"].numpy(),
            **{name: state[name] for name in _COUNTERS if name in state},
        )


_COUNTERS = ("segment", "step", "examples", "packs", "packed_tokens", "last_step", "units_per_row")


@dataclass(frozen=True)
class Segment:
    """The training data between two states: packs of a pool of examples, in order."""

    pool: ExamplePool
    plan: Plan
    order: Ints
    start: StreamState
    end: StreamState


def read_segment(
    state: StreamState,
    streams: Sequence[SourceStream],
    run_tasks: TaskRunner,
    options: StreamOptions,
    batch: int,
    seed: int,
) -> Segment:
    """Return the segment that begins at `state`; `batch` is the global batch in packs.

    Raises DataError if a source cannot be read, or if a whole pass over it gave no example.
    """
    alone = len(streams) == 1
    tasks, cursors = _read_rows(state, streams, options, state.rows_wanted(options, batch))
    advanced, new = _read_examples(state, tasks, run_tasks)
    for stream, before, after, report in zip(streams, state.cursors, cursors, advanced.reports, strict=True):
        if after.passes > before.passes and report.kept == 0:
            raise DataError(no_examples_message(stream.key, report))
    pool = ExamplePool.concatenate([state.left_over, *new])
    # Packing depends on the lengths alone; the shuffle decides which examples of equal length share a pack.
    drawn = epoch_order(len(pool), seed + 1, state.segment)
    plan = (plan_packs if options.packing else plan_singles)(pool.lengths[drawn], options.max_length)
    plan = replace(plan, examples=drawn[plan.examples])
    ends = alone and cursors[0].passes > state.cursors[0].passes
    kept = np.arange(len(plan)) if ends else _full_steps(plan, pool.lengths, len(state.left_over), batch)
    if options.group_by_length:
        order = kept[grouped_order(pool.lengths[plan.examples[kept]], batch, seed, state.segment)]
    else:
        order = kept[epoch_order(len(kept), seed, state.segment)]
    unused = np.setdiff1d(np.arange(len(plan)), kept)
    left_over = pool.take(np.sort(_examples_of(plan, unused)))
    end = replace(
        advanced,
        cursors=cursors,
        left_over=left_over,
        segment=state.segment + 1,
        step=state.step + -(-len(kept) // batch),
        packs=state.packs + len(kept),
        packed_tokens=state.packed_tokens + int(pool.lengths.sum()) - int(left_over.lengths.sum()),
    )
    return Segment(pool, plan, order, state, end)


def _read_rows(
    state: StreamState, streams: Sequence[SourceStream], options: StreamOptions, wanted: int
) -> tuple[list[RowTask], list[Cursor]]:
    """Return the next `wanted` rows as tasks, and the cursor of each source after them."""
    alone = len(streams) == 1
    rows = [report.rows for report in state.reports]
    sizes = [report.tokens if options.mix_by_tokens else report.kept for report in state.reports]
    counts = [wanted] if alone else next_rows(options.weights, rows, sizes, wanted)
    tasks, cursors = [], []
    for index, (stream, cursor, count) in enumerate(zip(streams, state.cursors, counts, strict=True)):
        passes = cursor.passes
        while count and not (alone and cursor.passes > passes):
            pieces, cursor = stream.read(cursor, count)
            tasks += [RowTask(index, 0, len(piece), piece) for piece in pieces]
            count -= sum(len(piece) for piece in pieces)
        cursors.append(cursor)
    return tasks, cursors


def _read_examples(
    state: StreamState, tasks: Sequence[RowTask], run_tasks: TaskRunner
) -> tuple[StreamState, list[ExamplePool]]:
    """Run the tasks; return the state with updated counts, and the new examples."""
    reports = [RowReport() for _ in state.reports]
    counts, examples, new = state.length_counts.copy(), state.examples, []
    for report, before in zip(reports, state.reports, strict=True):
        report.add(before)
    for task, (chunk, report) in zip(tasks, run_tasks(tasks), strict=True):
        reports[task.source].add(report)
        counts[task.source] += np.bincount(chunk.lengths, minlength=counts.shape[1])
        new.append(ExamplePool.from_chunk(chunk, task.source, examples))
        examples += len(chunk.lengths)
    return replace(state, reports=reports, length_counts=counts, examples=examples), new


def _full_steps(plan: Plan, lengths: Array, left_over: int, batch: int) -> Ints:
    """Return as many packs as fill whole steps, preferring those with one of the first `left_over` examples, then full ones."""
    count = len(plan) // batch * batch
    if not count:
        return np.empty(0, dtype=np.int64)
    starts = plan.bounds[:-1]
    tokens = np.add.reduceat(lengths[plan.examples], starts)
    waits = np.logical_or.reduceat(plan.examples < left_over, starts)
    return np.sort(np.lexsort((-tokens, ~waits))[:count])


def _examples_of(plan: Plan, packs: Ints) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *(plan.pack(int(pack)) for pack in packs)])
