"""Reads the rows of a file of any kind, as a whole or as a shard of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arctic_hydra.data.rows.base import JoinedRows, ListRows, Rows
from arctic_hydra.data.rows.columnar import DatasetRows, IndexedShard, read_arrow, read_parquet
from arctic_hydra.data.rows.file_kind import FileKind, file_kind
from arctic_hydra.data.rows.jsonl import JsonLinesShard, read_json_array, read_json_lines
from arctic_hydra.data.rows.lines import CsvShard, TextLinesShard, read_csv, read_text
from arctic_hydra.data.rows.shard import LazyShard, Shard
from arctic_hydra.errors import DataError

_READERS: dict[FileKind, Callable[[Path], Rows]] = {
    FileKind.parquet: read_parquet,
    FileKind.arrow: read_arrow,
    FileKind.csv: read_csv,
    FileKind.text: lambda path: read_text(path, "line"),
    FileKind.json_array: read_json_array,
    FileKind.json_lines: read_json_lines,
}
_SHARDS: dict[FileKind, Callable[[Path], Shard]] = {
    FileKind.parquet: lambda path: IndexedShard(read_parquet(path)),
    FileKind.arrow: lambda path: IndexedShard(read_arrow(path)),
    FileKind.csv: CsvShard,
    FileKind.text: TextLinesShard,
    FileKind.json_lines: JsonLinesShard,
    FileKind.empty: JsonLinesShard,  # a stream may contain shards without rows
}


def as_rows(value: Any, origin: str = "") -> Rows:
    """Wrap the result of a source's `load`: `Rows`, a `datasets.Dataset` or a list of dicts."""
    if isinstance(value, Rows):
        return value
    if hasattr(value, "column_names"):
        return DatasetRows(value, origin)
    return ListRows(value, origin)


def read_files(paths: Sequence[Path], read: Callable[[Path], Rows] | None = None) -> Rows:
    """Return the rows of the files one after another, each read with `read` (`read_file` by default)."""
    parts = [(read or read_file)(path) for path in paths]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def read_file(path: Path) -> Rows:
    """Return the rows of a file of any `FileKind`; of a text file, one row per line.

    Raises DataError naming the file and the reason.
    """
    kind = file_kind(path)
    if kind is FileKind.empty:
        raise DataError(f"{path}: the file is empty; expected rows, such as one JSON object per line")
    return _READERS[kind](path)


def file_shard(path: Path) -> Shard:
    """Return a file as a shard, of the kind that `read_file` would read it as.

    Raises DataError for a JSON array, which cannot be read in parts.
    """
    kind = file_kind(path)
    if kind is FileKind.json_array:
        raise DataError(
            f"{path}: is a single JSON array, which cannot be streamed; expected one object per line; convert it with "
            f"`jq -c '.[]'`"
        )
    return _SHARDS[kind](path)


def file_shards(paths: Sequence[Path], make: Callable[[Path], Shard] = file_shard) -> list[Shard]:
    """Return a shard for each file; `make` opens it when it is first read."""
    return [LazyShard(lambda path=path: make(path)) for path in paths]  # type: ignore[misc]
