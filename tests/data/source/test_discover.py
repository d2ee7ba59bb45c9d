"""Files by name, directory and pattern, and the files of a split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arctic_hydra.data.source.hf import HFSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import DataError
from tests.data.samples import chat, write_lines
from tests.data.source.files import ROWS, questions


def test_files_that_name_no_split_are_all_of_train(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("b.jsonl", "a.json", "data/latest-2024.jsonl", ".hidden.jsonl", "config.json"):
        write_lines(tmp_path / name, [chat(name, "a")])
    for name in ("README.md", "LICENSE.txt", ".gitattributes"):
        (tmp_path / name).write_text("x")
    source = HFSource(path=str(tmp_path))
    assert questions(source.rows("train")) == ["a.json", "b.jsonl", "data/latest-2024.jsonl"]
    with pytest.raises(DataError, match=r"no file of split 'eval'; .*found splits: a, b, latest, train; set"):
        source.rows("eval")

    (tmp_path / "more.csv").write_text("text\nx\n")
    with pytest.raises(
        DataError, match=r"name no split and have several formats \(a\.json, more\.csv\); .*set the source's path="
    ):
        source.rows("train")

    for name in ("my-test.jsonl", "validation/b.jsonl"):
        (tmp_path / "more.csv").unlink(missing_ok=True)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_lines(tmp_path / name, [chat("not to train on", "a")])
        with pytest.raises(DataError, match="no file of split 'train'"):
            source.rows("train")
        (tmp_path / name).unlink()


def test_a_split_in_two_formats_is_refused(tmp_path: Path) -> None:
    """Both were read, so that training saw each row twice."""
    for place in ("", "train/"):
        (tmp_path / "a" / place).mkdir(exist_ok=True, parents=True)
        for name in ("train.jsonl", ".hidden.parquet", "dataset_info.json", "train.csv"):
            write_lines(tmp_path / "a" / place / name, [chat(name, "a")])
        source = HFSource(path=str(tmp_path / "a"))
        with pytest.raises(
            DataError, match=r"the files of split 'train' have several formats \(.*train\.csv, .*train\.jsonl\)"
        ):
            source.rows("train")
        (tmp_path / "a" / place / "train.csv").unlink()
        assert questions(source.rows("train")) == ["train.jsonl"]
        (tmp_path / "a" / place / "train.jsonl").unlink()


def test_a_directory_of_several_splits_is_refused_unless_all_are_asked_for(tmp_path: Path) -> None:
    for name in ("train_sft.jsonl", "more.jsonl"):
        write_lines(tmp_path / name, [chat(name, "a")])
    assert questions(JsonSource(path=str(tmp_path)).rows("train")) == ["more.jsonl", "train_sft.jsonl"]
    write_lines(tmp_path / "test_sft.jsonl", [chat("held out", "a")])
    with pytest.raises(
        DataError,
        match=r"several splits, such as train_sft.jsonl and test_sft.jsonl; .*; pass one of them, such as .*/train_s",
    ):
        JsonSource(path=str(tmp_path)).rows("train")
    assert len(questions(JsonSource(path=f"{tmp_path}/*").rows("train"))) == 3


def test_lists_keep_their_order_and_refuse_repetition(tmp_path: Path) -> None:
    first, second = write_lines(tmp_path / "b.jsonl", ROWS[:2]), write_lines(tmp_path / "a.jsonl", ROWS[2:4])
    rows = JsonSource(path=[str(first), str(second)]).rows("train")
    assert rows.take(range(4)) == ROWS[:4]
    with pytest.raises(DataError, match=r"b\.jsonl: the path names it twice, expected each file once"):
        JsonSource(path=[str(first), str(tmp_path / "b*")]).rows("train")


def test_directories_and_patterns_join_files_by_name(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", ROWS[1:])
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:1]))
    (tmp_path / "notes.txt").write_text("no data")
    for path in (tmp_path, tmp_path / "*.json*"):
        rows = JsonSource(path=str(path)).rows("train")
        assert rows.take(range(len(rows))) == ROWS
        assert rows.where(0) == f"{tmp_path / 'a.json'}, row 0" and rows.where(2) == f"{tmp_path / 'b.jsonl'}:2"
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "contains no .json or .jsonl file"),
        (tmp_path / "*.csv", "no such file .*glob"),
    ):
        with pytest.raises(DataError, match=message):
            JsonSource(path=str(path)).rows("train")
