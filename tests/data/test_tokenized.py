"""Tokenizing data factories: sources, splits and the cache of each source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.source.text import TextSource
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError, DataError
from tests.data.cache.samples import entries, key
from tests.data.samples import (
    chat,
    factory,
    geometry,
    write_lines,
)


def test_several_sources_keep_their_names(small_chats: Path, tmp_path: Path, tokenizer: Any) -> None:
    other = write_lines(tmp_path / "other.jsonl", [chat("q", "other")] * 3)
    sources = {"one": JsonSource(path=str(small_chats)), "two": JsonSource(path=str(other), sample_count=2)}
    loader, evaluation = factory(other, sources=sources, max_length=128).build(tokenizer, geometry(2, 1))
    assert evaluation is None and loader.source_names == ["one", "two"]
    tokens = {0: 0, 1: 0}
    for window in loader.windows(0):
        for batch in window.micro_batches:
            for source in batch.source_K.tolist():
                tokens[source] += 1
    figures = loader.summary()
    assert [figures["sources"][name]["supervised_tokens"] for name in ("one", "two")] == list(tokens.values())
    assert figures["sources"]["two"]["examples"] == 2
    assert figures["tokens"] == sum(source["tokens"] for source in figures["sources"].values())
    json.dumps(figures)


def test_held_out_split_is_disjoint_and_complete(small_chats: Path, tokenizer: Any) -> None:
    data = factory(small_chats, train_eval_split=["80%", 0.2], max_length=256)
    assert data.has_evaluation
    train, evaluation = data.build(tokenizer, geometry(2, 1))
    assert evaluation is not None
    ids = [
        [i for w in loader.windows(e) for b in w.micro_batches for i in b.example_ids]
        for loader, e in ((train, 0), (evaluation, 0), (evaluation, 1))
    ]
    assert sorted(ids[0] + ids[1]) == list(range(37)) and len(ids[1]) == 7
    assert ids[1] == ids[2], "evaluation is not shuffled"


def causal(path: Path, **fields: Any) -> CausalDataFactory:
    return CausalDataFactory(**{"sources": {"mine": TextSource(path=str(path))}, "num_proc": 1, **fields})


def test_the_pieces_of_a_document_are_on_one_side_of_the_split(tmp_path: Path, tokenizer: Any) -> None:
    """Ten documents of ten had been trained on and evaluated on."""
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text("".join(" ".join(f"d{n}w{place}" for place in range(60 * n)) + "\n" for n in range(1, 6)))
    sources = {path.stem: TextSource(path=str(path)) for path in paths}
    data = CausalDataFactory(sources=sources, num_proc=1, max_length=64, train_eval_split=[0.7, 0.3])
    store = data.process("train", tokenizer, World())
    train, held_out = (
        [(int(store.sources[index]), int(store.rows[index])) for index in part] for part in data.split(store, 7)
    )
    assert len(set(train)) == 7 and len(set(held_out)) == 3 and not set(train) & set(held_out)
    assert len(train) + len(held_out) == len(store) > 30
    paths[0].write_text("word " * 200)
    data = causal(paths[0], max_length=64, train_eval_split=[0.9, 0.1])
    store = data.process("train", tokenizer, World())
    with pytest.raises(
        ConfigError,
        match="^data.train_eval_split: holds out 1 of the 1 rows that have examples, which leaves nothing to train on",
    ):
        data.split(store, 7)


def test_only_a_changed_source_is_tokenized_again(
    small_chats: Path, tmp_path: Path, tokenizer: Any, private_cache: Path
) -> None:
    other = write_lines(tmp_path / "other.jsonl", [chat("q", "a")])
    sources = {"one": JsonSource(path=str(small_chats)), "two": JsonSource(path=str(other))}
    first = key(small_chats, tokenizer, sources=sources)
    before = entries(private_cache)
    times = {path: path.stat().st_mtime_ns for path in before}
    write_lines(other, [chat("q", "b")])
    assert key(small_chats, tokenizer, sources=sources) != first
    assert len(before) == 2 and len(entries(private_cache)) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == times


def test_a_missing_cache_entry_can_be_an_error(small_chats: Path, tokenizer: Any) -> None:
    strict = factory(small_chats, fail_on_missing_cache=True)
    message = r"data\.sources\.mine: its tokenized data \(entry [0-9a-f]{32}\) is not in the cache, and data\.fail_on_missing_cache"
    with pytest.raises(DataError, match=message):
        strict.process("train", tokenizer, World())
    prepared = factory(small_chats).process("train", tokenizer, World())
    assert strict.process("train", tokenizer, World()).key == prepared.key
