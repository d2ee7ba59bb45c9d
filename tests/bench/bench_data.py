"""The data room by itself: its word cache, a start from the cache of prepared rows, and streams.

`python -m tests.bench data`. Rows do not repeat, because rows that do would flatter the word cache.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from tests.bench.bench_prepare import write_chats
from tests.bench.harness import Comparison, Sample, cpu_seconds

CHATS, WINDOWS = 7473, 400


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield preparation with and without the word cache, starts with and without prepared rows, and streams."""
    chats, windows = (40, 2) if quick else (CHATS, WINDOWS)
    rows = write_chats(folder, chats)
    sides = {"tokenizer alone": partial(prepared, rows, False), "word cache": partial(prepared, rows, True)}
    yield Comparison(f"preparation of {chats:,} chats in this process", sides, _check)
    first_batch(rows, folder, False)
    sides = {
        "prepared anew": partial(first_batch, rows, folder, False),
        "cache": partial(first_batch, rows, folder, True),
    }
    yield Comparison(f"start to the first batch of {chats:,} chats", sides, _check)
    if not quick:  # a process more takes seconds to start
        sides = {f"{count} process(es)": partial(streamed, rows, windows, count) for count in (1, 2)}
        yield Comparison(
            f"the first {windows} steps of a stream", sides, _check, settings="packs of 2,048 tokens, 8 a step"
        )


def prepared(rows: Path, with_cache: bool) -> Sample:
    """Tokenize the rows; the answer is the ids, masks and lengths."""
    from arctic_hydra.data.encode.bpe_cache import WordTokenizer
    from arctic_hydra.data.formats.reading import Reading, RowFormat
    from arctic_hydra.data.prepare.build import CHUNK_ROWS
    from arctic_hydra.data.prepare.preparer import RowPreparer, SourceRows
    from arctic_hydra.data.rows.jsonl import JsonLinesRows
    from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

    lines = JsonLinesRows(rows)
    options, tokenizer = factory(rows).options(), BundledTokenizerFactory().create_tokenizer()
    with nullcontext() if with_cache else mock.patch.object(WordTokenizer, "of", return_value=None):
        start, cpu = time.perf_counter(), cpu_seconds()
        chats = SourceRows("data.sources.chat", "chat", lines, reading=Reading(RowFormat.messages))
        preparer = RowPreparer(chats, tokenizer, options)
        starts = range(0, len(lines), CHUNK_ROWS)
        chunks = [preparer.prepare_chunk(first, min(first + CHUNK_ROWS, len(lines)))[0] for first in starts]
        wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    answer = [[getattr(chunk, name).tobytes() for name in ("ids", "mask", "lengths")] for chunk in chunks]
    return Sample(wall, cpu, answer)


def first_batch(rows: Path, folder: Path, is_kept: bool) -> Sample:
    """Build the batches and take the first, with the prepared rows of the time before or without; the answer is its tokens."""
    if not is_kept:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return _windows(factory(rows, num_proc=1, cache_dir=str(folder / "cache")), 1)


def streamed(rows: Path, windows: int, processes: int) -> Sample:
    """Take so many steps from a stream; the answer is their tokens."""
    return _windows(factory(rows, num_proc=processes, streaming=True), windows)


def _windows(data: Any, count: int) -> Sample:
    from arctic_hydra.data.base import BatchGeometry
    from arctic_hydra.distributed import World
    from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

    tokenizer = BundledTokenizerFactory().create_tokenizer()
    start, cpu = time.perf_counter(), cpu_seconds()
    loader, _ = data.build(tokenizer, BatchGeometry(1, 8, World(), 42, 10**9))
    # A short file begins anew; a stream does so by itself.
    windows = itertools.chain.from_iterable(loader.windows(epoch) for epoch in itertools.count())
    ids = [batch.input_ids_BT.tolist() for window in itertools.islice(windows, count) for batch in window.micro_batches]
    return Sample(time.perf_counter() - start, cpu_seconds() - cpu, ids)


def factory(rows: Path, **more: Any) -> Any:
    """Return the data factory of the rows."""
    from arctic_hydra.data.sft import SFTDataFactory
    from arctic_hydra.data.source.json import JsonSource

    return SFTDataFactory(sources={"chat": JsonSource(path=str(rows))}, max_length=2048, overlong="keep_start", **more)


def _check(answers: dict[str, Any]) -> None:
    base, *others = answers.values()
    assert base and all(other == base for other in others), "the sides gave different tokens"
