"""What reading prepared data keeps in memory: not more, however much is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arctic_hydra.data.cache import token_store
from arctic_hydra.data.cache.token_store import EXAMPLES, TokenStore, write_store
from arctic_hydra.data.documents import Chunk

EXAMPLES_PER_CHUNK, LENGTH, CHUNKS = 20_000, 32, 20


def chunks() -> list[Chunk]:
    lengths = np.full(EXAMPLES_PER_CHUNK, LENGTH, np.int32)
    ids = np.arange(EXAMPLES_PER_CHUNK * LENGTH, dtype=np.int32)
    rows = np.arange(EXAMPLES_PER_CHUNK)
    return [Chunk(ids + n, np.ones(len(ids), np.uint8), lengths, rows + n * EXAMPLES_PER_CHUNK) for n in range(CHUNKS)]


def resident_mib(path: Path) -> float:
    """Return how much of a mapped file this process holds."""
    inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total / 1024


def test_reading_at_random_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path, chunks(), dict)
    opened = TokenStore(tmp_path, "key")
    order = np.random.default_rng(0).permutation(len(opened))[: 8 * token_store.RELEASE_EXAMPLES]
    view = opened.ids(0)
    monkeypatch.setattr(token_store, "RELEASE_EXAMPLES", 10**9)
    for index in order:
        opened.ids(int(index)).sum()
    held = resident_mib(tmp_path / EXAMPLES)
    assert held > 20, "mapped pages pile up when nothing lets them go"
    monkeypatch.undo()
    for index in order:
        opened.ids(int(index)).sum()
    assert resident_mib(tmp_path / EXAMPLES) < held / 2
    assert view.tolist() == list(range(LENGTH)), "what was handed out before stays readable"
