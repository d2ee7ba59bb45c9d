"""Building an entry: the same examples with any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.prepare import build as build_module
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.samples import chat, factory, geometry, write_lines


@pytest.mark.slow
def test_worker_processes_give_the_same_examples(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "many.jsonl", [chat(f"q {n}", "word " * (n % 40)) for n in range(400)])
    monkeypatch.setattr(build_module, "CHUNK_ROWS", 64)
    monkeypatch.setattr(build_module, "SECONDS_PER_HELPER", 1e-6)
    stores = [
        factory(path, max_length=40, cache=False, num_proc=n).process("train", tokenizer, World()) for n in (1, 2)
    ]
    assert stores[0].report == stores[1].report and stores[0].report["mine"]["dropped"]["overlong"] > 50
    for index in range(len(stores[0])):
        assert stores[0].ids(index).tolist() == stores[1].ids(index).tolist()
    messages = []
    for workers in (1, 2):  # an error keeps its place
        with pytest.raises(DataError, match=r"many\.jsonl:\d+: \d+ tokens") as caught:
            factory(path, max_length=40, cache=False, num_proc=workers, overlong=Overlong.error).build(
                tokenizer, geometry()
            )
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
