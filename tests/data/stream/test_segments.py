"""Segments of a stream: full steps, sources mixed by weight, no source without examples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import DataError
from tests.data.samples import chat, factory, geometry, write_lines
from tests.data.stream.samples import tokens_factory, write_shards


def test_steps_are_full_until_a_pass_ends(tmp_path: Path, tokenizer: Any) -> None:
    write_shards(tmp_path, [[5] * 20, [9] * 21])
    loader, _ = tokens_factory(tmp_path, buffer_rows=6, packing=False).build(tokenizer, geometry(4, 1, steps=22))
    sizes = [len(batch.example_ids) for window in loader.windows(0) for batch in window.micro_batches]
    assert sizes == [*[4] * 10, 1] * 2, "41 rows: ten full steps and the rest, in each pass"
    assert loader.summary()["passes"] == {"tokens": 2}


@pytest.mark.parametrize(("mix_by", "expected"), [("examples", 3.0), ("tokens", 3.0)])
def test_sources_are_mixed_by_weight(tmp_path: Path, tokenizer: Any, mix_by: str, expected: float) -> None:
    for name, length in (("short", 3), ("long", 12)):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, [[length] * 30])
    sources = {
        name: JsonSource(path=str(tmp_path / name), process=False, weight=weight)
        for name, weight in (("short", 3), ("long", 1))
    }
    made = SFTDataFactory(
        sources=sources, streaming=True, num_proc=1, max_length=24, buffer_rows=40, mix_by=mix_by, prefetch_steps=0
    )
    loader, _ = made.build(tokenizer, geometry(steps=120))
    counts: Counter[int] = Counter()
    for window in loader.windows(0):
        for batch in window.micro_batches:
            for length in batch.document_lengths:
                counts[length] += length if mix_by == "tokens" else 1
    assert counts[3] / counts[12] == pytest.approx(expected, rel=0.1)
    assert loader.summary()["passes"]["short"] > loader.summary()["passes"]["long"]


def test_a_source_without_examples_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "a.jsonl", [chat("word " * 90, "a")] * 3)
    loader, _ = factory(path, streaming=True, max_length=16, prefetch_steps=0).build(tokenizer, geometry(steps=9))
    with pytest.raises(DataError, match=r"no examples left after filtering; (.|\n)*overlong"):
        next(iter(loader.windows(0)))
    (tmp_path / "b.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"data\.sources\.mine: has no rows; expected at least one"):
        factory(tmp_path / "b.jsonl", streaming=True).build(tokenizer, geometry(steps=9))
