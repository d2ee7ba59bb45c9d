"""Data sets in the layout of the Hugging Face hub, by directory, file or id."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.errors import DataError, FieldError
from tests.data.samples import chat, write_lines
from tests.data.source.files import HUB_SPLITS, questions


def test_split_files_are_found_by_name(hub_directory: Path) -> None:
    source = HFSource(path=str(hub_directory), split_mapping=HUB_SPLITS)
    assert questions(source.load("train")) == [f"train {n}" for n in range(4)]
    assert questions(source.load("eval")) == ["test"]
    named = HFSource(path=str(hub_directory), split="train_sft_gen", split_mapping=HUB_SPLITS)
    assert questions(named.load("train")) == ["other split"]
    assert source.load("train").where(2).endswith("train_sft.jsonl:3")


def test_parquet_shards_below_data_are_joined_in_order(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in (1, 0):
        rows = [chat(f"shard {shard} row {n}", "a") for n in range(5)]
        name = f"train_sft-{shard:05}-of-00002-a1b2.parquet"
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / name, row_group_size=2)
    rows_read = HFSource(path=str(tmp_path), split_mapping=HUB_SPLITS).load("train")
    assert questions(rows_read) == [f"shard {shard} row {n}" for shard in (0, 1) for n in range(5)]
    assert rows_read.where(6).endswith("train_sft-00001-of-00002-a1b2.parquet, row 1")


def test_a_file_and_a_split_folder_work_too(tmp_path: Path) -> None:
    write_lines(tmp_path / "any.jsonl", [chat("one", "a")])
    assert questions(HFSource(path=str(tmp_path / "any.jsonl")).load("train")) == ["one"]
    (tmp_path / "train").mkdir()
    write_lines(tmp_path / "train" / "b.json", [chat("two", "a")])
    assert questions(HFSource(path=str(tmp_path)).load("train")) == ["two"]


def test_a_missing_split_lists_the_existing_ones(hub_directory: Path) -> None:
    with pytest.raises(
        DataError, match=r"no file of split 'train'; .*found splits: test_sft, train_sft, train_sft_gen; set the"
    ):
        HFSource(path=str(hub_directory)).load("train")


def test_a_missing_split_is_reported_with_the_key_of_the_source(hub_directory: Path) -> None:
    sources = {"mine": HFSource(path=str(hub_directory))}
    for data, split, key in (
        (SFTDataFactory(sources=sources), "train", r"data\.sources\.mine: /"),
        (SFTDataFactory(sources=sources, streaming=True), "train", r"data\.sources\.mine: /"),
        (SFTDataFactory(sources=sources, eval_sources=sources), "eval", r"data\.eval_sources\.mine: /"),
    ):
        with pytest.raises(DataError, match=rf"^{key}.*: no file of split '{split}'"):
            data.identity_of(split, "mine")
        with pytest.raises(DataError, match=rf"^{key}.*: no file of split '{split}'"):
            data.identities(split)


def test_a_missing_path_never_tries_the_network() -> None:
    source = HFSource(path="/no/such/place")
    (problem,) = source.check_environment()
    assert problem.startswith("path: '/no/such/place': no such file or directory")
    for call in (source.load, source.identity):
        with pytest.raises(DataError, match=r"'/no/such/place': no such file or directory .*check the path"):
            call("train")


def test_an_unreachable_hub_id_fails_quickly_and_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(
        DataError, match=r"'nobody/nothing', split 'train': cannot be loaded .*offline, set the source's path="
    ):
        HFSource(path="nobody/nothing").load("train")
    assert time.monotonic() - start < 20


def test_saved_datasets_load_and_have_an_identity(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([chat("saved", "a")]).save_to_disk(str(tmp_path / "saved"))
    source = HFSource(path=str(tmp_path / "saved"))
    assert questions(source.load("train")) == ["saved"]
    assert source.identity("train") == source.identity("train")


def test_outlines_notice_a_saved_set_that_changed(tmp_path: Path) -> None:
    import datasets

    source = HFSource(path=str(tmp_path / "saved"))
    outlines = []
    for word in ("one", "two"):
        datasets.Dataset.from_list([{"text": word}]).save_to_disk(str(tmp_path / "saved"))
        outlines.append(str(source.outline("train")))
    assert outlines[0] != outlines[1]


def test_a_hub_id_and_a_split_in_one() -> None:
    short = HFSource(path="HuggingFaceH4/ultrachat_200k:train_sft[:5%]")
    assert short == HFSource(path="HuggingFaceH4/ultrachat_200k", split="train_sft[:5%]")
    assert HFSource(path="name:test", split="test").split == "test"
    for path in ("s3://bucket/name", "/data/a:b", "./a:b", "org/name"):
        assert (HFSource(path=path).path, HFSource(path=path).split) == (path, "")
    with pytest.raises(
        FieldError, match="split: got 'train', but path='org/name:test' names the split 'test'; remove one"
    ):
        HFSource(path="org/name:test", split="train")
