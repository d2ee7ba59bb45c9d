"""Benchmark of the data room: preparation, its word cache, packing, and how soon a cached run has its first batch.

`nox -s bench`, or `python tests/bench/bench_data.py [--rows N] [--chats FILE]`. Prints one line for each figure, with
the machine's load beside it, since a loaded machine says little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CHATS = ROOT.parent / "shared" / "data" / "chat" / "train_sft.jsonl"
BUNDLED = ROOT / "arctic_hydra" / "assets" / "chat" / "train_sft.jsonl"

PREPARE = """
import json, sys, time
from pathlib import Path
from arctic_hydra.data.base import BatchGeometry
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
path, cache, processes, length = sys.argv[1:]
tokenizer = BundledTokenizerFactory().create_tokenizer()
data = SFTDataFactory(
    sources={"chat": JsonSource(path=path)}, num_proc=processes, cache_dir=cache, max_length=length, overlong="keep_start"
)
start = time.perf_counter()
loader, _ = data.build(tokenizer, BatchGeometry(1, 8, World(), 42))
built = time.perf_counter() - start
next(loader.windows(0))
print(json.dumps({"build": built, "first": time.perf_counter() - start, **loader.summary()}))
"""


def say(what: str, **figures: object) -> None:
    """Print one result."""
    shown = "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )
    print(f"{what:<44} {shown}  (load {os.getloadavg()[0]:.1f})", flush=True)


def repeat_rows(source: Path, target: Path, rows: int) -> None:
    """Write the conversations of `source` again and again, `rows` in all."""
    lines = source.read_text(encoding="utf-8").rstrip("\n").split("\n")
    with target.open("w", encoding="utf-8") as file:
        for index in range(rows):
            file.write(lines[index % len(lines)] + "\n")


def prepare(path: Path, cache: Path, processes: int) -> dict[str, float]:
    """Prepare in a process of its own and return its figures."""
    command = [sys.executable, "-c", PREPARE, str(path), str(cache), str(processes), "2048"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def bench_preparation(source: Path, rows: int) -> None:
    """Time preparation with one and two processes, and the cache hit that follows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        repeat_rows(source, path, rows)
        for processes in (1, 2):
            cache = Path(folder) / f"cache{processes}"
            cold, warm = prepare(path, cache, processes), prepare(path, cache, processes)
            rate = cold["tokens"] / cold["build"]
            say(f"prepare {rows:,} chats, {processes} process(es)", seconds=cold["build"], tokens_per_second=rate)
            say("  cache hit to the first batch", seconds=warm["first"], fill=warm["fill"])


def bench_streaming(source: Path, rows: int) -> None:
    """Time one pass of a stream, from the file to the batches, tokenised by this process and by two others."""
    from arctic_hydra.data.base import BatchGeometry
    from arctic_hydra.data.sft import SFTDataFactory
    from arctic_hydra.data.source.json import JsonSource
    from arctic_hydra.distributed import World
    from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

    tokenizer = BundledTokenizerFactory().create_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        repeat_rows(source, path, rows)
        for processes in (1, 2):
            data = SFTDataFactory(
                sources={"chat": JsonSource(path=str(path))}, streaming=True, num_proc=processes, overlong="keep_start"
            )
            loader, _ = data.build(tokenizer, BatchGeometry(1, 8, World(), 42, 10**9))
            start, tokens, windows = time.perf_counter(), 0, loader.windows(0)
            while not any(loader.summary()["passes"].values()):  # the last segment is then being served
                tokens += sum(batch.num_tokens for batch in next(windows).micro_batches)
            seconds = time.perf_counter() - start
            say(f"stream {rows:,} chats, {processes} process(es)", tokens_per_second=tokens / seconds)
            windows.close()  # type: ignore[attr-defined]


def bench_word_cache(source: Path, repeats: int = 3) -> None:
    """Compare preparation with and without the word cache on the rows of `source`, each once: rows that repeat flatter it."""
    from arctic_hydra.data.encode.bpe_cache import WordTokenizer

    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats):
        chunks = {}
        for is_on in (True, False):
            with nullcontext() if is_on else mock.patch.object(WordTokenizer, "of", return_value=None):
                chunks[is_on], spent = prepare_here(source)
            seconds[is_on].append(spent)
        for with_cache, without in zip(*chunks.values(), strict=True):
            for name in ("ids", "mask", "lengths"):
                assert np.array_equal(getattr(with_cache, name), getattr(without, name)), (
                    f"the word cache changes {name}"
                )
    rows = sum(len(chunk.lengths) for chunk in chunks[True])
    on, off = (min(seconds[is_on]) for is_on in (True, False))
    say(f"word cache, {rows:,} rows once, same ids", cpu_seconds=on, cpu_seconds_without=off, times=off / on)


def prepare_here(source: Path) -> tuple[list[Any], float]:
    """Return the chunks of `source` and the CPU seconds of all threads that preparing them took."""
    from arctic_hydra.data.formats.reading import Reading, RowFormat
    from arctic_hydra.data.prepare.build import CHUNK_ROWS
    from arctic_hydra.data.prepare.preparer import RowPreparer, SourceRows
    from arctic_hydra.data.rows.jsonl import JsonLinesRows
    from arctic_hydra.data.sft import SFTDataFactory
    from arctic_hydra.data.source.json import JsonSource
    from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

    rows = JsonLinesRows(source)
    options = SFTDataFactory(sources={"chat": JsonSource(path=str(source))}).options()
    begun = time.process_time()
    chats = SourceRows("data.sources.chat", "chat", rows, reading=Reading(RowFormat.messages))
    preparer = RowPreparer(chats, BundledTokenizerFactory().create_tokenizer(), options)
    starts = range(0, len(rows), CHUNK_ROWS)
    chunks = [preparer.prepare_chunk(start, min(start + CHUNK_ROWS, len(rows)))[0] for start in starts]
    return chunks, time.process_time() - begun


def real_lengths(source: Path) -> np.ndarray:
    """Return the lengths of the conversations in tokens."""
    from arctic_hydra.data.sft import SFTDataFactory
    from arctic_hydra.data.source.json import JsonSource
    from arctic_hydra.distributed import World
    from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

    data = SFTDataFactory(sources={"chat": JsonSource(path=str(source))}, cache=False)
    return data.process("train", BundledTokenizerFactory().create_tokenizer(), World()).lengths


def bench_packing(source: Path, count: int = 1_000_000) -> None:
    """Time the packing plan on lognormal lengths, on the real ones repeated, and on long documents, few of them alike."""
    lognormal = np.random.default_rng(0).lognormal(5.9, 0.9, count)
    real = np.resize(real_lengths(source), count)
    for name, lengths in (("lognormal", lognormal), ("real", real)):
        for capacity in (4096, 16384):
            time_plan(name, np.clip(lengths.astype(np.int64), 1, capacity), capacity)
    for few, least, capacity in ((20_000, 1_000, 4096), (3_000, 8_000, 65_536), (10_000, 8_000, 65_536)):
        lengths = np.random.default_rng(0).integers(least, capacity + 1, few)
        time_plan(f"{least:,} to {capacity:,}", lengths, capacity)


def time_plan(name: str, lengths: np.ndarray, capacity: int) -> None:
    """Time one packing plan."""
    from arctic_hydra.data.load.packing import plan_packs

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    plan = plan_packs(lengths, capacity)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    say(f"pack {len(lengths):,} {name} lengths at {capacity}", seconds=seconds, fill=plan.fill, peak_grew_mib=grown)


def main() -> None:
    """Run every benchmark of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--chats", type=Path, default=CHATS if CHATS.exists() else BUNDLED)
    options = parser.parse_args()
    bench_word_cache(options.chats)
    bench_packing(options.chats)
    bench_preparation(options.chats, options.rows)
    bench_streaming(options.chats, options.rows)


if __name__ == "__main__":
    main()
