"""The base of the built-in sources: splits, slices, samples, and the identity of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.rows.shard import START
from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import DataError, FieldError
from tests.data.source.files import HUB_SPLITS, ROWS, questions, write


@pytest.mark.parametrize("fields", [{"sample_count": 2}, {"sample_ratio": "50%"}])
def test_samples_are_drawn_by_seed_in_row_order(hub_directory: Path, fields: dict[str, Any]) -> None:
    def draw(**more: Any) -> list[str]:
        return questions(HFSource(path=str(hub_directory), split="train_sft", **fields, **more).rows("train"))

    assert len(draw()) == 2 and draw() == sorted(draw()) == draw()
    assert len({tuple(draw(sample_seed=seed)) for seed in range(8)}) > 1


def test_a_subclass_overrides_load_as_that_of_any_source(hub_directory: Path) -> None:
    """It used to be asked for `train` whatever the split, and had to take slice and sample itself."""
    asked = []

    class Mine(HFSource):
        def load(self, split: str) -> Any:
            asked.append(split)
            rows = super().load(split)
            return [{**row, "mine": True} for row in rows.take(range(len(rows)))]

    path = str(hub_directory)
    rows = Mine(path=path, split_mapping=HUB_SPLITS, split="train[1:]", sample_count=2).rows("train")
    assert len(rows) == 2 and set(questions(rows)) < {f"train {n}" for n in range(1, 4)}
    read = Mine(path=path, split_mapping=HUB_SPLITS).shards("eval")[0].read(START, 9)[0]
    assert read.take([0])[0]["mine"] and questions(read) == ["test"] and asked == ["train_sft", "test_sft"]


def test_samples_and_splits_are_part_of_the_identity(hub_directory: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"sample_count": 2},
        {"sample_count": 2, "sample_seed": 1},
        {"split": "test_sft"},
    ]
    base = {"path": str(hub_directory), "split_mapping": HUB_SPLITS}
    assert len({str(HFSource(**{**base, **fields}).identity("train")) for fields in variants}) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sample_ratio": 0.5, "sample_count": 3},
            "sample_ratio: got 0.5 together with sample_count=3; expected one of them",
        ),
        ({"sample_ratio": 0}, "sample_ratio: got 0, which leaves no rows"),
        ({"sample_ratio": 1.5}, "sample_ratio: got 1.5, expected 1 or less"),
        ({"sample_count": 0}, "sample_count: got 0, expected 1 or more"),
    ],
)
def test_refused_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        HFSource(path="x", **fields)


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train[:10%]", [0]),
        ("train[50%:]", [5, 6, 7, 8, 9]),
        ("[2:4]", [2, 3]),
        ("train[-2:]", [8, 9]),
        ("train[:]", list(range(10))),
    ],
)
def test_splits_can_be_sliced(tmp_path: Path, split: str, numbers: list[int]) -> None:
    write(tmp_path / "train.jsonl")
    for source in (HFSource(path=str(tmp_path), split=split), JsonSource(path=str(tmp_path), split=split)):
        rows = source.rows("train")
        assert rows.take(range(len(rows))) == [ROWS[number] for number in numbers]
        assert rows.where(0) == f"{tmp_path / 'train.jsonl'}:{numbers[0] + 1}"


def test_slices_are_checked_and_part_of_the_identity(tmp_path: Path) -> None:
    path = str(write(tmp_path / "train.jsonl"))
    assert len({str(JsonSource(path=path, split=split).identity("train")) for split in ("", "[:2]", "[:3]")}) == 3
    with pytest.raises(
        FieldError, match=r"split: got 'train\[10\]', expected a name and a slice such as train\[:10%\]"
    ):
        JsonSource(path=path, split="train[10]")
    with pytest.raises(DataError, match=r"split=train\[20:\] leaves no rows"):
        JsonSource(path=path, split="train[20:]").rows("train")


def test_a_share_without_rows_is_named(tmp_path: Path) -> None:
    path = str(write(tmp_path / "train.jsonl"))
    with pytest.raises(
        DataError, match=r"sample_ratio=0\.01 of 10 rows leaves none; .*; raise it, or set sample_count"
    ):
        JsonSource(path=path, sample_ratio="1%").rows("train")
    assert len(JsonSource(path=path, sample_ratio="6%").rows("train")) == 1
