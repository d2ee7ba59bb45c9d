"""JSON and JSON Lines files, distinguished by content."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from arctic_hydra.data.source.json import JsonSource
from tests.data.samples import chat
from tests.data.source.files import assert_reads_rows, write

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
def test_formats_are_detected_by_content(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(content.encode())
    rows = JsonSource(path=str(path)).rows("train")
    assert rows.take(range(len(rows))) == ROWS
    again = pickle.loads(pickle.dumps(rows))
    assert again.take([2, 0]) == [ROWS[2], ROWS[0]]


def test_rows_are_read(tmp_path: Path) -> None:
    assert_reads_rows(write(tmp_path / "a.jsonl"), JsonSource)
