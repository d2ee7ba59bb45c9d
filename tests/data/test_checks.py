"""Fields of tokenizing data factories that are refused, each by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.checks import field_problems
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.bundled import BundledSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import FieldError
from tests.data.load.samples import two_sources
from tests.data.samples import factory


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 0}, "max_length: got 0, expected 2 or more"),
        ({"max_length": -5}, "max_length: got -5, expected 2 or more"),
        ({"max_length": 10.5}, "max_length: got 10.5, expected a whole number"),
        ({"num_proc": 0}, "num_proc: got 0, expected 1 or more"),
        (
            {"train_eval_split": [0.5, 0.4]},
            r"train_eval_split: got \[0.5, 0.4\], expected two shares from 0 to 1 that sum to 1",
        ),
        ({"train_eval_split": [0.0, 1.0]}, "leaves nothing to train on"),
        ({"train_eval_split": ["x", 1.0]}, "train_eval_split: got 'x', expected a number"),
        (
            {"train_eval_split": [0.9, 0.1], "eval_sources": {"e": BundledSource()}},
            r"got \[0.9, 0.1\] together with eval_sources \(e\)",
        ),
        ({"sources": {}}, "sources: got none, expected at least one"),
    ],
)
def test_refused_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        SFTDataFactory(**{"sources": {"chat": BundledSource()}, **fields})


def test_shares_are_converted_once_and_checking_writes_no_field() -> None:
    data = SFTDataFactory(sources={"chat": BundledSource()}, train_eval_split=["80%", 0.2])
    assert data.train_eval_split == [0.8, 0.2], "at construction, as every numeric field"
    data.train_eval_split = ["80%", "20%"]
    assert list(field_problems(data)) == []
    assert data.train_eval_split == ["80%", "20%"]


def test_requests_without_effect_are_refused(small_chats: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"group_by_length": True}, "group_by_length: has no effect together with packing=true"),
        ({"mix_by": "tokens"}, "mix_by: has no effect without a weight"),
        (
            {"sources": two_sources(tmp_path, small_chats, one=1)},
            r"sources\.two\.weight: got none, but another source has one",
        ),
        (
            {"eval_sources": {"e": JsonSource(path="x", weight=1)}},
            r"eval_sources\.e\.weight: has no effect: evaluation uses each example once",
        ),
    ]
    for fields, message in cases:
        with pytest.raises(FieldError, match=message):
            factory(small_chats, **fields)
    with pytest.raises(FieldError, match=r"weight: got 0, expected 1e-09 or more"):
        JsonSource(path="x", weight=0)


@pytest.mark.parametrize(
    ("fields", "source", "text"),
    [
        ({}, {"sample_count": 5}, r"sources\.mine\.sample_count: has no effect .* data\.streaming=true"),
        ({}, {"split": "train[:10%]"}, r"sources\.mine\.split: got a slice, .* the slice"),
        ({"train_eval_split": [0.9, 0.1]}, {}, r"train_eval_split: .* cannot hold rows out; set data\.eval_sources"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(fields: dict[str, Any], source: dict[str, Any], text: str) -> None:
    with pytest.raises(FieldError, match=text):
        SFTDataFactory(sources={"mine": JsonSource(path="x", **source)}, streaming=True, **fields)


def test_a_buffer_without_a_stream_is_refused() -> None:
    with pytest.raises(FieldError, match=r"buffer_rows: has no effect without data\.streaming=true"):
        SFTDataFactory(sources={"mine": JsonSource(path="x")}, buffer_rows=5)


def test_streamed_sources_need_weights() -> None:
    with pytest.raises(FieldError, match=r"sources\.a\.weight: got none, but .*streamed"):
        SFTDataFactory(sources={"a": JsonSource(path="x"), "b": JsonSource(path="y")}, streaming=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_roles": ["gpt"]}, "train_roles: got 'gpt', expected one or more of system"),
        ({"train_roles": []}, "train_roles: got none"),
        ({"eot_tokens": [""]}, "eot_tokens: got '', expected tokens of the tokenizer"),
        (
            {"mask_inputs": False, "train_on_eot": False},
            "mask_inputs: got false, which trains on every token, together with .* train_on_eot",
        ),
        (
            {"mask_inputs": False, "train_on": "last"},
            "mask_inputs: got false, which trains on every token, together with train_on",
        ),
    ],
)
def test_refused_choices_of_turns(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        factory(Path("x"), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"drop_last": True, "packing": False}, "drop_last: has no effect with packing=false"),
        ({"fuse_positions_prob": 1.5}, "fuse_positions_prob: got 1.5, expected 1 or less"),
        (
            {"fuse_positions_prob": "10%", "streaming": True},
            r"fuse_positions_prob: .* data\.streaming=true, which packs",
        ),
        (
            {"div_length": 64},
            r"div_length: got 64, which has no effect without padding to it; pass data\.pad_to=div_length",
        ),
        (
            {"pad_to": "max_length", "div_length": 256, "max_length": 1000},
            r"div_length: got 256, which does not divide max_length=1000; pass data\.max_length=768 or 1024",
        ),
        ({"pad_to": "longer"}, "pad_to: got 'longer', expected one of longest, div_length, max_length"),
        ({"fail_on_missing_cache": True, "cache": False}, r"fail_on_missing_cache: got true, but data\.cache=false"),
        (
            {"repeat_to_pack_max_length": True, "sources": {"a": JsonSource(path="x", weight=1)}},
            "repeat_to_pack_max_length: got true together with weights",
        ),
    ],
)
def test_refused_packs_and_padding(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        factory(Path("x"), **fields)
