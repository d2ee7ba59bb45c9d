"""JSON and JSON Lines files: format by content, one or many; bad files are in ../test_sft.py."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import DataError
from tests.data.samples import chat, write_lines

ROWS = [chat("one", "1"), chat("zwei 你好", "2"), chat("three", "3")]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(map(json.dumps, ROWS)),
        "\n".join(map(json.dumps, ROWS)) + "\n",
        "\r\n".join(map(json.dumps, ROWS)) + "\r\n\r\n",
        "\n\n" + "\n \n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
        "\ufeff" + "\n".join(map(json.dumps, ROWS)),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
    ],
    ids=["lines", "final newline", "crlf", "blank lines", "bom", "array", "indented array"],
)
def test_formats_are_told_by_content(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(content.encode())
    rows = JsonSource(path=str(path)).load("train")
    assert rows.take(range(len(rows))) == ROWS
    again = pickle.loads(pickle.dumps(rows))
    assert again.take([2, 0]) == [ROWS[2], ROWS[0]]


def test_rows_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n")
    rows = JsonSource(path=str(path)).load("train")
    assert [rows.where(index) for index in (0, 1)] == [f"{path}:2", f"{path}:4"]


def test_directories_and_patterns_join_files_by_name(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", ROWS[1:])
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:1]))
    (tmp_path / "notes.txt").write_text("no data")
    for path in (tmp_path, tmp_path / "*.json*"):
        rows = JsonSource(path=str(path)).load("train")
        assert rows.take(range(3)) == ROWS
        assert rows.where(0) == f"{tmp_path / 'a.json'}, row 0" and rows.where(2) == f"{tmp_path / 'b.jsonl'}:2"
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "holds no .json or .jsonl file"),
        (tmp_path / "*.csv", "no such file .*glob"),
    ):
        with pytest.raises(DataError, match=message):
            JsonSource(path=str(path)).load("train")
