"""The loader of streamed data: rows are tokenized and packed during training, and a resumed run continues exactly.

Every rank reads the whole stream and takes its part of each step. A checkpoint contains the state at the start of the
current segment; resuming reads that segment again.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

from arctic_hydra import display
from arctic_hydra.data.base import BatchGeometry, Example
from arctic_hydra.data.batch import StepBatch
from arctic_hydra.data.load.batches import StepBatches
from arctic_hydra.data.load.prefetch import prefetch
from arctic_hydra.data.load.statistics import length_statistics
from arctic_hydra.data.prepare.preparer import PrepareOptions, SourceRows
from arctic_hydra.data.prepare.row_report import warn
from arctic_hydra.data.prepare.workers import PreparedChunk, RowTask, task_runner
from arctic_hydra.data.stream.segments import Segment, StreamOptions, StreamState, read_segment
from arctic_hydra.data.stream.sources import SourceStream
from arctic_hydra.human_numbers import format_count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PREVIEW_ROWS = 200
"""Rows of each source that are read before training, to detect their format and for statistics and previews."""


class StreamingLoader:
    """Batches of a stream; implements `data.base.Loader` with a single epoch that is as long as the run."""

    def __init__(
        self,
        streams: Sequence[SourceStream],
        sources: Sequence[SourceRows],
        tokenizer: PreTrainedTokenizerBase,
        prepare_options: PrepareOptions,
        fingerprint: str,
        geometry: BatchGeometry,
        options: StreamOptions,
        processes: int,
    ) -> None:
        """Serve the streams; `sources` contain their first rows and how to read rows."""
        self.fingerprint = fingerprint
        self.source_names = [source.name for source in sources]
        self._streams, self._geometry, self._options = streams, geometry, options
        self._runner_arguments = (sources, tokenizer, prepare_options)
        self._processes = processes
        self._start = StreamState.start(len(streams), options.max_length, geometry.most_steps)
        with display.phase("tokenize", "first rows of the stream", unit="rows") as phase:
            self._latest = self._prepare_preview(tokenizer)
            phase.advance(sum(len(source.rows) for source in sources))
        read, packed = self._latest.reports, options.packing
        units = sum(report.tokens if packed else report.kept for report in read)
        self._start = replace(self._start, units_per_row=units / max(1, sum(report.rows for report in read)))
        self._states = [self._start]

    def _prepare_preview(self, tokenizer: PreTrainedTokenizerBase) -> StreamState:
        """Tokenize the first rows of each source, so that their problems are reported before a model is built."""
        sources = self._runner_arguments[0]
        reports, counts = [], self._start.length_counts.copy()
        self._preview: list[Example] = []
        with task_runner(*self._runner_arguments, processes=1) as run_tasks:
            tasks = [RowTask(index, 0, len(source.rows)) for index, source in enumerate(sources)]
            for index, (chunk, report) in enumerate(run_tasks(tasks)):
                warn(sources[index].key, report, tokenizer)
                reports.append(report)
                ends = chunk.lengths.cumsum()
                for row, length, end in zip(chunk.rows, chunk.lengths, ends, strict=True):
                    counts[index, length] += 1
                    part = slice(end - length, end)
                    ids, mask = chunk.ids[part].tolist(), chunk.mask[part].tolist()
                    self._preview.append(Example(self.source_names[index], int(row), ids, mask))
        return replace(self._start, reports=reports, length_counts=counts)

    def steps(self, epoch: int) -> int:
        """Optimizer steps of the run, because a stream has no end."""
        return self._geometry.most_steps

    def windows(self, epoch: int, start: int = 0) -> Iterator[StepBatch]:
        """Yield this rank's batches of each step from `start` on; reading, tokenizing and packing run ahead in threads."""
        stopped = Event()
        windows = prefetch(self._windows(start, stopped), self._options.prefetch_steps)
        try:
            for window in windows:  # noqa: UP028 (`yield from` would close `windows` before `stopped` is set)
                yield window
        finally:
            stopped.set()
            windows.close()

    def _windows(self, start: int, stopped: Event) -> Generator[StepBatch, None, None]:
        depth = self._options.prefetch_steps
        segments = prefetch(self._segments(self._state_before(start), stopped), min(1, depth))
        try:
            for segment in segments:
                # The trainer is at most `depth` + 2 steps behind.
                self._drop_states_before(segment.start.step - depth - 2)
                self._states.append(segment.end)
                self._latest = segment.end
                batches = StepBatches(segment.pool, segment.plan, segment.order, self._geometry, self._options)
                for step in range(max(start, segment.start.step), segment.end.step):
                    if step == self._geometry.most_steps:
                        return
                    window = batches.step_batch(step - segment.start.step)
                    for batch in window.micro_batches:
                        batch.example_ids = [int(segment.pool.numbers[index]) for index in batch.example_ids]
                    yield replace(window, step_in_epoch=step)
        finally:
            segments.close()

    def _segments(self, state: StreamState, stopped: Event) -> Generator[Segment, None, None]:
        geometry = self._geometry
        with task_runner(*self._runner_arguments, processes=self._processes) as run_tasks:

            def unless_stopped(tasks: Iterable[RowTask]) -> Iterator[PreparedChunk]:
                for chunk in run_tasks(tasks):
                    if stopped.is_set():  # the trainer has stopped and should not wait for the rest of a segment
                        raise CancelledError
                    yield chunk

            while True:
                segment = read_segment(
                    state, self._streams, unless_stopped, self._options, geometry.global_batch_size, geometry.seed
                )
                if segment.end.last_step:  # a run that extends another one has further steps
                    segment = replace(segment, end=replace(segment.end, last_step=geometry.most_steps))
                self._report(segment)
                yield segment
                state = segment.end
                if state.step >= geometry.most_steps > 0:
                    return  # the run ends before it needs another

    def _report(self, segment: Segment) -> None:
        passed = any(
            after.passes > before.passes
            for before, after in zip(segment.start.cursors, segment.end.cursors, strict=True)
        )
        if not passed and segment.end.segment & segment.start.segment:  # at 1, 2, 4, 8, ... segments
            return
        end = segment.end
        room = max(1, end.packs) * self._options.max_length
        fill = f", {end.packed_tokens / room:.2%} full" if self._options.packing else ""
        log.info(
            "stream: %s rows read, %s examples, %s tokens%s; passes: %s",
            f"{sum(report.rows for report in end.reports):,}", f"{end.examples:,}",
            format_count(sum(report.tokens for report in end.reports)), fill,
            ", ".join(f"{name} {cursor.passes}" for name, cursor in zip(self.source_names, end.cursors, strict=True)),
        )  # fmt: skip

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return the state with which a loader on any rank can continue after `step` steps."""
        return self._state_before(step).state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        loaded = StreamState.from_state_dict(state)
        if 0 < loaded.last_step <= loaded.step:  # the end of a run that this one extends
            loaded = replace(loaded, last_step=self._geometry.most_steps)
        self._latest = loaded
        self._states = [self._start, self._latest]

    def _state_before(self, step: int) -> StreamState:
        """Return the start of the segment that contains the step, or of the latest known segment before it."""
        return [state for state in list(self._states) if state.step <= step][-1]

    def _drop_states_before(self, step: int) -> None:
        """Drop the states that no checkpoint after `step` steps needs, except the first."""
        while len(self._states) > 2 and self._states[2].step <= step:
            del self._states[1]

    def preview(self, count: int) -> list[Example]:
        """Return up to the first `count` examples of each source."""
        return [
            example
            for name in self.source_names
            for example in [shown for shown in self._preview if shown.source == name][:count]
        ]

    def summary(self) -> dict[str, Any]:
        """Return statistics of the rows read so far; before the first step, of the first rows of each source."""
        state, options = self._latest, self._options
        sources = {
            name: {"prepared": report.to_dict(), **length_statistics(counts, report.supervised_tokens)}
            for name, report, counts in zip(self.source_names, state.reports, state.length_counts, strict=True)
        }
        supervised = sum(report.supervised_tokens for report in state.reports)
        room = state.packs * options.max_length
        return {
            **length_statistics(state.length_counts.sum(axis=0), supervised),
            "streaming": True,
            "passes": {name: cursor.passes for name, cursor in zip(self.source_names, state.cursors, strict=True)},
            "packing": options.packing,
            "packs": state.packs,
            "fill": round(state.packed_tokens / room, 6) if room else 0.0,
            "pack_tokens": options.max_length,
            "max_length": options.max_length,
            "sources": sources,
            "fingerprint": self.fingerprint,
        }
