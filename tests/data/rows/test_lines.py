"""CSV and text files: the line of each problem is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.source.csv import CsvSource
from arctic_hydra.data.source.text import SampleBy, TextSource
from arctic_hydra.errors import DataError
from tests.data.source.files import every_row

BAD: list[tuple[type[Any], str, bytes, str]] = [
    (CsvSource, "a.csv", b"q,a\n1,2\n3\n", r"a\.csv:3: has 1 fields, but the header has 2 \(q, a\)"),
    (CsvSource, "a.csv", b'q,a\n1,2\n3,"4\n5,6\n', r"a\.csv:3: the row that starts here is not CSV \(unexpected end"),
    (CsvSource, "a.csv", b'q,a\n1,2\n3,"4" 5\n', r"a\.csv:3: the row that starts here is not CSV \(',' expected"),
    (CsvSource, "a.csv", b"q,a,q\n1,2,3\n", r"a\.csv:1: the header has 'q' more than once; expected distinct names"),
    (CsvSource, "a.csv", b"q,a\n", "has no rows below its header"),
    (CsvSource, "a.csv", b"q,a\n1,\xe9\n", r"a\.csv:2: byte 0xe9 is not UTF-8"),
    (CsvSource, "a.csv", b"q,a\n1,2\n\0\0,3\n", r"a\.csv:3: contains NUL bytes"),
    (CsvSource, "a.csv", b"PK\x03\x04", "is a zip archive; unpack it first"),
    (TextSource, "a.txt", b"\n\n", "the file is empty; expected text"),
    (TextSource, "a.txt", b"one\n\xff\xfe\n", r"a\.txt:2: byte 0xff is not UTF-8"),
]


@pytest.mark.parametrize(("kind", "name", "content", "message"), BAD)
def test_bad_files_are_named(tmp_path: Path, kind: type[Any], name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        every_row(kind(path=str(tmp_path / name)))


def test_texts_by_line_paragraph_and_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree 你好\n")
    expected = {
        SampleBy.line: [("one", 1), ("two", 2), ("three 你好", 5)],
        SampleBy.paragraph: [("one\ntwo", 1), ("three 你好", 5)],
        SampleBy.document: [("one\ntwo\n\n\nthree 你好\n", 1)],
    }
    for sample_by, rows_expected in expected.items():
        rows = TextSource(path=str(path), sample_by=sample_by).rows("train")
        assert [(row["text"], rows.where(n)) for n, row in enumerate(rows.take(range(len(rows))))] == [
            (text, f"{path}:{line}") for text, line in rows_expected
        ]
    assert len({str(TextSource(path=str(path), sample_by=by).identity("train")) for by in SampleBy}) == 3
