"""Base classes of sources and data factories: what the rest of the package reads has a value in any subclass."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.base import BatchGeometry, DataFactory, DataSource
from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.data.preference import PreferenceDataFactory
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.tokenized import TokenizedDataFactory
from arctic_hydra.errors import FieldError
from tests.command import run


@dataclass(kw_only=True)
class OwnSource(DataSource):
    """A user's source without the fields of the built-in ones."""

    def load(self, split: str) -> Any:
        return [{"text": "a"}]


@dataclass(kw_only=True)
class WeightedSource(OwnSource):
    """A user's source that declares a weight."""

    weight: float | None = None


@dataclass(kw_only=True)
class Numbers(DataSource):
    """A user's source that only knows how to read."""

    def load(self, split: str) -> Any:
        return [{"text": f"{split} {number}"} for number in range(10)]


def test_any_source_has_splits_slices_and_samples() -> None:
    def texts(of: str = "train", **fields: Any) -> list[str]:
        rows = Numbers(**fields).rows(of)
        return [row["text"] for row in rows.take(range(len(rows)))]

    assert texts() == [f"train {number}" for number in range(10)] and texts("eval")[0] == "eval 0"
    assert texts(split="test") == [f"test {number}" for number in range(10)]
    assert texts(split="test[:20%]") == ["test 0", "test 1"]
    assert len(texts(sample_ratio="30%")) == 3 and len(texts(sample_count=4)) == 4
    assert texts(sample_count=4) != texts(sample_count=4, sample_seed=1)
    assert Numbers(split="[:3]").identity("train") != Numbers().identity("train")
    with pytest.raises(FieldError, match="sample_ratio: got 0.5 together with sample_count=3"):
        Numbers(sample_ratio=0.5, sample_count=3)
    with pytest.raises(FieldError, match=r"split: got 'train\[x\]', expected a name and a slice"):
        Numbers(split="train[x]")
    assert [key for key, _ in Numbers(split="[:3]", sample_count=1).streaming_problems(mixed=False)] == [
        "sample_count",
        "split",
    ]


@dataclass(kw_only=True)
class OwnFactory(DataFactory):
    """A user's data factory without the fields of the built-in ones."""

    def build(self, tokenizer: Any, geometry: BatchGeometry) -> Any:
        raise NotImplementedError


def test_sources_without_these_fields_have_no_weight_and_every_split() -> None:
    source = OwnSource()
    assert source.weight is None and source.has_split("eval")
    assert not list(source.streaming_problems(mixed=True))
    assert WeightedSource(weight=2.0).weight == 2.0
    sources = {"one": OwnSource(), "two": OwnSource()}
    SFTDataFactory(sources=sources, eval_sources=sources)
    SFTDataFactory(sources=sources, streaming=True)
    with pytest.raises(FieldError, match=r"sources\.own\.weight: got none, but another source has one"):
        SFTDataFactory(sources={"own": OwnSource(), "mine": JsonSource(path="x", weight=1)})


def test_the_weight_is_a_config_key_only_of_sources_that_declare_it() -> None:
    assert "weight" in JsonSource.__dataclass_fields__ and "weight" not in OwnSource.__dataclass_fields__


def test_an_empty_mapped_split_does_not_exist_unless_another_is_named() -> None:
    mapping = {"eval": ""}
    data = dict(split_mapping=mapping)
    from arctic_hydra.data.source.hf import HFSource

    assert HFSource(path="x", **data).has_split("train") and not HFSource(path="x", **data).has_split("eval")
    assert HFSource(path="x", split="train[:1%]", **data).has_split("eval")


def test_factories_have_packing_and_row_length() -> None:
    own = OwnFactory()
    assert (own.packs, own.row_tokens, list(own.end_of_turn_tokens)) == (False, 0, [])
    kinds: list[type[TokenizedDataFactory]] = [SFTDataFactory, CausalDataFactory, PreferenceDataFactory]
    for kind in kinds:
        data = kind(sources={"mine": JsonSource(path="x")}, max_length="1Ki", packing=False)
        assert (data.packs, data.row_tokens) == (False, 1024)
        assert kind(sources={"mine": JsonSource(path="x")}).packs
    data = SFTDataFactory(sources={"mine": JsonSource(path="x")}, eot_tokens=["<|im_end|>"])
    assert data.end_of_turn_tokens == ["<|im_end|>"]


def test_a_source_of_an_extension_takes_them_from_the_config(my_lab: Path, tmp_path: Path) -> None:
    more = "data=mix data/sources=[] +source@data.sources.sums=sums data.sources.sums.largest=1K data.sources.sums.split=hard[:20]"
    arguments = f"{more} data.sources.sums.sample_ratio=50% task=preview preview_examples=20"
    done = run(arguments, tmp_path, PYTHONPATH=str(my_lab))
    questions = re.findall(r"hard: 0 \+ (\d+)\?", done.stdout)
    assert len(questions) == 10 and all(int(number) < 20 for number in questions)
    wrong = run(f"{more} data.sources.sums.sample_ratio=2", tmp_path, code=2, PYTHONPATH=str(my_lab))
    assert "data.sources.sums.sample_ratio: got 2, expected 1 or less" in wrong.stderr


def test_rows_that_are_taken_as_they_are_have_another_identity() -> None:
    """Rows may hold both conversations and token ids."""
    tokenized, as_it_is = (
        SFTDataFactory(sources={"mine": OwnSource(process=process)}).identities("train")["mine"]
        for process in (True, False)
    )
    assert tokenized != as_it_is
