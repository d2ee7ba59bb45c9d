"""Resident memory of a rank over 10,000 rows: of 1,000,000 packed rows that are mapped from disk, and of a stream.

`nox -s bench`, or `python tests/bench/bench_memory_rows.py [--rows N]`. Reads VmRSS (anonymous and mapped pages) before and
after; the first 500 rows warm up. The packed rows are read by the loader alone, then trained on with the real engine and a
model of two small layers.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TOKENS, PER_ROW, MICRO = 16, 4, 4
WARM_UP = 500


def resident_mib() -> float:
    """Return this process's resident memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def packed_loader(folder: Path, packs: int) -> Any:
    """Return a loader over so many packed rows, each of four examples."""
    from arctic_hydra.data.base import BatchGeometry
    from arctic_hydra.data.cache.token_store import JoinedStore, TokenStore, write_store
    from arctic_hydra.data.documents import Chunk
    from arctic_hydra.data.load.loader import LoaderOptions, PackedLoader
    from arctic_hydra.distributed import World

    def chunks() -> Iterator[Chunk]:
        count = 100_000
        draw = np.random.default_rng(0)
        for first in range(0, packs * PER_ROW, count):
            ids = draw.integers(0, 128, count * TOKENS, dtype=np.int32)
            mask = np.ones(count * TOKENS, np.uint8)
            yield Chunk(ids, mask, np.full(count, TOKENS, np.int32), first + np.arange(count))

    report = {"rows": packs * PER_ROW, "max_token_id": 127}
    write_store(folder, chunks(), lambda: report)
    store = JoinedStore({"rows": TokenStore(folder, "key")})
    options = LoaderOptions(True, 0, TOKENS * PER_ROW, True, 2)
    examples = np.arange(len(store), dtype=np.int64)
    return PackedLoader(store, examples, ["rows"], BatchGeometry(MICRO, 1, World(), 42), options)


def stream_loader(folder: Path, rows: int) -> Any:
    """Return a loader that streams a file of conversations."""
    from arctic_hydra.data.base import BatchGeometry
    from arctic_hydra.data.sft import SFTDataFactory
    from arctic_hydra.data.source.json import JsonSource
    from arctic_hydra.distributed import World
    from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

    path = folder / "stream.jsonl"
    with path.open("w") as file:
        for index in range(rows):
            turns = [
                {"role": "user", "content": f"Question {index}?"},
                {"role": "assistant", "content": "word " * (index % 90)},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    data = SFTDataFactory(sources={"big": JsonSource(path=str(path))}, streaming=True, max_length=512, num_proc=1)
    loader, _ = data.build(BundledTokenizerFactory().create_tokenizer(), BatchGeometry(MICRO, 1, World(), 42, 10**9))
    return loader


def measure(what: str, steps: Iterator[Any], rows: int) -> None:
    """Take `rows` rows from `steps`, `MICRO` in each, and print how far the memory grew."""
    before, start = 0.0, 0.0
    for step, _ in enumerate(steps):
        if step * MICRO == WARM_UP:
            before, start = resident_mib(), time.perf_counter()
        if step * MICRO >= WARM_UP + rows:
            break
    grown, seconds = resident_mib() - before, time.perf_counter() - start
    print(
        f"{what:<46} {rows:,} rows  grew {grown:6.1f} MiB from {before:.0f} MiB  {rows / seconds:,.0f} rows/s  "
        f"(load {os.getloadavg()[0]:.1f})",
        flush=True,
    )


def trained(loader: Any, folder: Path, steps: int) -> Iterator[None]:
    """Train on the loader's windows with the real engine; yields after each step."""
    from tests.trainer.loop import documents, make_trainer

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29557", "DS_ACCELERATOR": "cpu"}
    from arctic_hydra import distributed

    distributed.start(distributed.World(), 60)
    trainer = make_trainer(documents([8], [4]), folder, micro_batch_size=MICRO, train_iters=steps, epochs=0)
    trainer.tools.loader = loader
    for window in trainer.train_batches:
        trainer.step(window, trainer._agree(window))
        yield


def main() -> None:
    """Run every benchmark of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--packs", type=int, default=1_000_000, help="packed rows on disk")
    parser.add_argument("--rows", type=int, default=10_000, help="rows to read")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loader = packed_loader(folder, options.packs)
        print(f"{len(loader.plan):,} packed rows, {(folder / 'examples.arrow').stat().st_size / 2**20:.0f} MiB on disk")
        measure("loader over packed rows", iter(loader.windows(0)), options.rows)
        steps = (WARM_UP + options.rows) // MICRO + 2
        measure("training over packed rows", trained(loader, folder, steps), options.rows)
        del loader
        measure(
            "loader over a stream of 200,000 conversations",
            iter(stream_loader(folder, 200_000).windows(0)),
            options.rows,
        )


if __name__ == "__main__":
    main()
