"""Detects how the rows of a file are stored, from its first bytes and its suffix."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from arctic_hydra.errors import DataError

_FOREIGN_STARTS = {
    b"\x1f\x8b": "gzip-compressed; unpack it first (`gunzip`)",
    b"PK\x03\x04": "a zip archive; unpack it first (`unzip`)",
    b"(\xb5/\xfd": "zstd-compressed; unpack it first (`unzstd`)",
    b"\xff\xfe": "UTF-16; convert it (`iconv -f utf-16 -t utf-8`)",
    b"\xfe\xff": "UTF-16; convert it (`iconv -f utf-16 -t utf-8`)",
    b"version https://git-lfs": "a git-lfs pointer, not the data; run `git lfs pull`",
}


class FileKind(Enum):
    """Storage of rows in a file."""

    parquet = "parquet"
    arrow = "arrow"
    csv = "csv"
    text = "text"
    json_array = "json_array"
    json_lines = "json_lines"
    empty = "empty"
    """Only whitespace, so neither JSON nor JSON Lines."""


def file_kind(path: Path) -> FileKind:
    """Return the kind of a file: Parquet, Arrow and JSON by content, CSV and text by suffix.

    Raises DataError naming the file and what it is instead.
    """
    head = check_readable(path)
    if head.startswith(b"PAR1") or path.suffix == ".parquet":
        return FileKind.parquet
    if head.startswith(b"ARROW1") or path.suffix == ".arrow":
        return FileKind.arrow
    if path.suffix in (".csv", ".tsv"):
        return FileKind.csv
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.suffix == ".txt" and not text.startswith((b"{", b"[")):
        return FileKind.text
    if text.startswith(b"<"):
        start = text[:77].decode("utf-8", errors="replace")
        raise DataError(f"{path}: looks like an HTML page, not data; it starts with {start!r}; download it again")
    if not text:
        return FileKind.empty
    return FileKind.json_array if text.startswith(b"[") else FileKind.json_lines


def check_readable(path: Path) -> bytes:
    """Return the first bytes of a file; raises DataError if it is missing or unreadable, or must be converted first."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a file of rows; check the path")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    for start, what in _FOREIGN_STARTS.items():
        if head.startswith(start):
            raise DataError(f"{path}: is {what}; expected JSON, JSON Lines, Parquet, Arrow, CSV or text")
    return head
