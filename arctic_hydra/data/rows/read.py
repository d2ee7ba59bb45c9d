"""Read the rows of a file, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arctic_hydra.data.rows.base import JoinedRows, ListRows, Rows
from arctic_hydra.data.rows.columnar import DatasetRows, IndexedShard, ParquetRows, read_arrow, read_parquet
from arctic_hydra.data.rows.jsonl import JsonLinesShard, read_json_array, read_json_lines
from arctic_hydra.data.rows.lines import CsvShard, TextLinesShard, read_csv, read_text
from arctic_hydra.data.rows.shard import LazyShard, Shard
from arctic_hydra.errors import DataError

_KNOWN_STARTS = {
    b"\x1f\x8b": "gzip-compressed; unpack it first (`gunzip`)",
    b"PK\x03\x04": "a zip archive; unpack it first (`unzip`)",
    b"(\xb5/\xfd": "zstd-compressed; unpack it first (`unzstd`)",
    b"\xff\xfe": "UTF-16; convert it (`iconv -f utf-16 -t utf-8`)",
    b"\xfe\xff": "UTF-16; convert it (`iconv -f utf-16 -t utf-8`)",
    b"version https://git-lfs": "a git-lfs pointer, not the data; run `git lfs pull`",
}


def as_rows(value: Any, origin: str = "") -> Rows:
    """Wrap what a source's `load` returned."""
    if isinstance(value, Rows):
        return value
    if hasattr(value, "column_names"):
        return DatasetRows(value, origin)
    return ListRows(value, origin)


def read_files(paths: Sequence[Path], read: Callable[[Path], Rows] | None = None) -> Rows:
    """Return the rows of the files, one after another; `read` reads one, `read_file` where none is given."""
    parts = [(read or read_file)(path) for path in paths]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def read_file(path: Path) -> Rows:
    """Return the rows of a file: Parquet, Arrow, JSON or JSON Lines by content, CSV and text (a row a line) by suffix.

    Raises DataError naming the file and what it is instead.
    """
    head = check_readable(path)
    if head.startswith(b"PAR1"):
        return read_parquet(path)
    if head.startswith(b"ARROW1") or path.suffix == ".arrow":
        return read_arrow(path)
    if path.suffix in (".csv", ".tsv"):
        return read_csv(path)
    if path.suffix == ".txt" and not head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"{", b"[")):
        return read_text(path, "line")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DataError(f"{path}: the file is empty; expected JSON or JSON Lines with one object per row")
    if text.startswith(b"<"):
        start_text = text[:77].decode("utf-8", errors="replace")
        raise DataError(f"{path}: looks like an HTML page, not data; it starts with {start_text!r}; download it again")
    return read_json_array(path) if text.startswith(b"[") else read_json_lines(path)


def check_readable(path: Path) -> bytes:
    """Return the first bytes of a file; raises DataError when it is missing, unreadable or of a kind that needs a tool."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a file of rows; check the path")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    for start, what in _KNOWN_STARTS.items():
        if head.startswith(start):
            raise DataError(f"{path}: is {what}; expected JSON, JSON Lines, Parquet, Arrow, CSV or text")
    return head


def file_shard(path: Path) -> Shard:
    """Return the shard of a file, of the format that `read_file` would read it as. Raises DataError for what has no lines."""
    head = check_readable(path)
    if head.startswith(b"PAR1"):
        return IndexedShard(ParquetRows(path))
    if head.startswith(b"ARROW1") or path.suffix == ".arrow":
        return IndexedShard(read_arrow(path))
    if path.suffix in (".csv", ".tsv"):
        return CsvShard(path)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.suffix == ".txt" and not text.startswith((b"{", b"[")):
        return TextLinesShard(path)
    if text.startswith(b"["):
        raise DataError(
            f"{path}: is one JSON array, which has to be read whole; expected one object per line to stream from; convert "
            f"it with `jq -c '.[]'`"
        )
    return JsonLinesShard(path)


def file_shards(paths: Sequence[Path], make: Callable[[Path], Shard] = file_shard) -> list[Shard]:
    """Return a shard for each file, none of them opened yet."""
    return [LazyShard(lambda path=path: make(path)) for path in paths]  # type: ignore[misc]
