"""Conversations from file to loader: what is kept, what is dropped and counted, and every bad input with its message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.bundled import BundledSource
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.samples import factory, geometry, make_tokenizer


def test_a_missing_file_is_an_environment_problem_and_a_data_error(tmp_path: Path, tokenizer: Any) -> None:
    data = factory(tmp_path / "none.jsonl")
    (problem,) = data.check_environment()
    assert re.match(r"sources\.mine\.path: .*none\.jsonl: no such file .*check the path", problem)
    with pytest.raises(DataError, match=r"data\.sources\.mine: .*none\.jsonl: no such file"):
        data.build(tokenizer, geometry())


def test_supervised_tokens_are_the_answers(small_chats: Path, tokenizer: Any) -> None:
    store = factory(small_chats).process("train", tokenizer, World())
    for index, row in enumerate(map(json.loads, small_chats.read_text().splitlines())):
        text = tokenizer.decode(store.ids(index)[store.mask(index).astype(bool)])
        assert text == row["messages"][1]["content"] + "<|im_end|>"


def test_a_tokenizer_without_chat_template_is_refused(small_chats: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no chat template, which conversations need; pass tokenizer\.chat_template=<file"
    ):
        factory(small_chats).build(make_tokenizer(None), geometry())
    several = make_tokenizer(None)
    several.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(
        DataError, match=r"has several chat templates \(rag, tool_use\) and none of them is the default"
    ):
        factory(small_chats).build(several, geometry())


def test_bundled_data_builds_both_loaders(tokenizer: Any) -> None:
    data = SFTDataFactory(
        sources={"chat": BundledSource()}, eval_sources={"chat": BundledSource()}, max_length=512, num_proc=1
    )
    train, evaluation = data.build(tokenizer, geometry(4, 1))
    assert evaluation is not None
    assert train.summary()["examples"] == 955 and evaluation.summary()["examples"] == 100
    assert train.summary()["sources"]["chat"]["prepared"]["dropped"] == {"overlong": 2}
    assert train.summary()["fill"] > 0.95 and 0.5 < train.summary()["supervised_share"] < 0.7
