"""Preparation of 7,473 chats that do not repeat, from the file to packs, against TRL's and ArcticTraining's.

`python -m tests.bench prepare`; `nox -s peers` makes the environments of the peers. Ids and labels are compared row by row first,
with one process and, of this package, with two. Every preparation is a process of its own with empty caches; its time is
that after the imports. Rows that repeat would flatter the cache of words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.harness import ROOT, Comparison, Sample, peer
from tests.bench.models import CHATS
from tests.bench.peers.compare import Bench

QUESTIONS = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
OURS = "arctic_hydra"
TARGETS = {1: 1 / 5, 2: 1 / 4}


def comparisons(folder: Path, quick: bool) -> Iterator[Comparison]:
    """Yield the comparison with one process and with two; the quick one is that of both, here."""
    if quick:
        rows = write_chats(folder, 40)
        sides = {f"{processes} processes": partial(dumped, rows, folder, processes) for processes in (1, 2)}
        yield Comparison("preparation of 40 chats", sides, _check)
        return
    found = {"TRL": peer("trl"), "ArcticTraining": peer("arctic")}
    pythons = {name: python for name, python in found.items() if python}
    bench = Bench(folder, {**pythons, OURS: sys.executable}, write_chats(folder, 7473))
    for name in pythons:
        bench.compare(name)
    for processes, target in TARGETS.items():
        sides = {name: partial(sample, bench, name, processes) for name in [*pythons, OURS]}
        about = f"{len(bench.chats):,} chats, packs of 2,048 tokens"
        targets = {OURS: target} if "TRL" in pythons else {}
        yield Comparison(f"preparation, {processes} process(es)", sides, _check, targets, about)


def write_chats(folder: Path, count: int) -> Path:
    """Write the questions and answers of GSM8K as chats; without that file, the bundled chats."""
    path, lines = folder / "chats.jsonl", CHATS.read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines[:count]]
    if QUESTIONS.exists():
        rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[:count]]
        chats = [
            [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
            for row in rows
        ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return path


def sample(bench: Bench, name: str, processes: int) -> Sample:
    """Prepare with one of the packages; the answer is the number of tokens in packs."""
    found = bench.prepare(name, processes)
    return Sample(found["seconds"], found["cpu"], found["tokens"], {"packs": found["packs"]})


def dumped(rows: Path, folder: Path, processes: int) -> Sample:
    """Prepare in this process; the answer is the ids and masks of all rows."""
    from arctic_hydra.data.sft import SFTDataFactory
    from arctic_hydra.data.source.json import JsonSource
    from arctic_hydra.distributed import World
    from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

    cache = folder / f"cache{processes}"
    data = SFTDataFactory(sources={"chat": JsonSource(path=str(rows))}, num_proc=processes, cache_dir=str(cache))
    store = data.process("train", BundledTokenizerFactory().create_tokenizer(), World())
    return Sample(1, 1, [[store.ids(index).tolist(), store.mask(index).tolist()] for index in range(len(store))])


def _check(answers: dict[str, Any]) -> None:
    base, *others = answers.values()
    assert base and all(other == base for other in others), answers
