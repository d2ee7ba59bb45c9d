"""The kind of a file, by content and suffix."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_hydra.data.rows.file_kind import FileKind, file_kind
from arctic_hydra.errors import DataError

KINDS: list[tuple[str, bytes, FileKind]] = [
    ("a.bin", b"PAR1...", FileKind.parquet),
    ("a.bin", b"ARROW1..", FileKind.arrow),
    ("a.arrow", b"a stream", FileKind.arrow),
    ("a.csv", b"q,a\n", FileKind.csv),
    ("a.tsv", b"", FileKind.csv),
    ("a.txt", b"some text", FileKind.text),
    ("a.txt", b"<b>some text</b>", FileKind.text),
    ("a.txt", b"", FileKind.text),
    ("a.txt", b'\xef\xbb\xbf\n{"a": 1}', FileKind.json_lines),
    ("a.json", b' [{"a": 1}]', FileKind.json_array),
    ("a", b'{"a": 1}', FileKind.json_lines),
    ("a.jsonl", b" \n", FileKind.empty),
]


@pytest.mark.parametrize(("name", "content", "kind"), KINDS)
def test_kinds_follow_content_and_suffix(tmp_path: Path, name: str, content: bytes, kind: FileKind) -> None:
    (tmp_path / name).write_bytes(content)
    assert file_kind(tmp_path / name) is kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08", "is gzip-compressed; unpack it first"),
        (b"PK\x03\x04", "is a zip archive; unpack it first"),
        (b"(\xb5/\xfd", "is zstd-compressed; unpack it first"),
        (b"\xff\xfea\0", "is UTF-16; convert it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer, not the data"),
        (b"\n<!DOCTYPE html>", "looks like an HTML page, not data; it starts with '<!DOCTYPE html>'"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jsonl: {message}"):
        file_kind(tmp_path / "a.jsonl")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file; expected a file of rows; check the path"):
        file_kind(tmp_path / "none.jsonl")
