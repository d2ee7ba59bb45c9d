"""Build a cache entry: worker processes tokenize the rows of a source, and the examples are written to disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_hydra import display
from arctic_hydra.data.cache.token_store import write_store
from arctic_hydra.data.documents import Chunk
from arctic_hydra.data.prepare.preparer import PrepareOptions, RowPreparer, SourceRows
from arctic_hydra.data.prepare.row_report import RowReport, no_examples_message
from arctic_hydra.data.prepare.workers import PreparedChunk, RowTask, prepare_with_helpers
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 1000
SECONDS_PER_HELPER = 3.0
"""Remaining single-process time that justifies one helper process, which takes a second or two to start."""
MIN_CHUNK_SECONDS = 0.06
"""Lower bound of the time per chunk; if even that justifies all helpers, they start along with the first chunk."""


def build_entry(
    directory: Path, source: SourceRows, tokenizer: PreTrainedTokenizerBase, options: PrepareOptions, num_proc: int
) -> None:
    """Write the examples of a source to `directory`; they do not depend on `num_proc`.

    Raises DataError with source, row and reason, or with a table of counts if no example is left.
    """
    total = RowReport()

    def chunks() -> Iterator[Chunk]:
        for chunk, report in _prepared_chunks(source, tokenizer, options, num_proc):
            total.add(report)
            phase.advance(report.rows)
            yield chunk
        if total.kept == 0:
            raise DataError(no_examples_message(source.key, total, not options.answers))

    more = [name for name, wanted in (("label", options.labelled), ("margin", options.margins)) if wanted]
    with display.phase("tokenize", source.key, unit="rows", total=len(source.rows)) as phase:
        write_store(directory, chunks(), total.to_dict, more)


def _prepared_chunks(
    source: SourceRows, tokenizer: PreTrainedTokenizerBase, options: PrepareOptions, num_proc: int
) -> Iterator[PreparedChunk]:
    count = len(source.rows)
    tasks = [RowTask(0, start, min(start + CHUNK_ROWS, count)) for start in range(0, count, CHUNK_ROWS)]
    preparer, begun = RowPreparer(source, tokenizer, options), time.perf_counter()
    for done, task in enumerate(tasks):
        left, each = len(tasks) - done, (time.perf_counter() - begun) / done if done else MIN_CHUNK_SECONDS
        helpers = min(num_proc - 1, left - 1, int(each * left / SECONDS_PER_HELPER))
        if helpers > 0 and (done or helpers == num_proc - 1):
            yield from prepare_with_helpers(preparer, tasks[done:], helpers, source, tokenizer, options)
            return
        yield preparer.prepare_chunk(task.start, task.stop)
