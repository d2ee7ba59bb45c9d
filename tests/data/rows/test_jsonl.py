"""JSON Lines: rows know their line, damaged lines are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.rows.jsonl import read_json_lines
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import DataError
from tests.data.samples import chat
from tests.data.source.files import every_row

ROWS = [chat("one", "1"), chat("zwei 你好", "2"), chat("three", "3")]


def test_rows_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n")
    rows = JsonSource(path=str(path)).rows("train")
    assert [rows.where(index) for index in (0, 1)] == [f"{path}:2", f"{path}:4"]


BAD: list[tuple[type[Any], str, bytes, str]] = [
    (
        JsonSource,
        "a.jsonl",
        b'{"text": "a"}\n\0\0\0\0\n',
        r"a\.jsonl:2: contains NUL bytes, which a crash or a full disk",
    ),
    (JsonSource, "a.json", b'[{"text": ' + b"1" * 4301 + b"}]", r"a\.json: not JSON \(Exceeds the limit .*correct it"),
    (JsonSource, "a.jsonl", b'{"text": "a"}\n{"text": "b\n', r"a\.jsonl:2: not JSON .*the file may be truncated"),
]


@pytest.mark.parametrize(("kind", "name", "content", "message"), BAD)
def test_bad_files_are_named(tmp_path: Path, kind: type[Any], name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        every_row(kind(path=str(tmp_path / name)))


def test_a_file_that_cannot_be_mapped_is_named() -> None:
    with pytest.raises(
        DataError, match=r"/proc/self/status: cannot be read \(cannot mmap .*; copy it to a regular file"
    ):
        read_json_lines(Path("/proc/self/status"))
