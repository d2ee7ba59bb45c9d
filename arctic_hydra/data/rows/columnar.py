"""Rows of Parquet files, Arrow files and Hugging Face datasets."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arctic_hydra.data.rows.base import Row, Rows
from arctic_hydra.data.rows.shard import ByteOffset, LocatedRows, Shard
from arctic_hydra.errors import DataError

MAX_GROUP_BYTES = 8 << 30
"""Memory that a row group of a Parquet file may take, unless the file is larger than `MAX_EXPANSION` explains."""
MAX_EXPANSION = 100


@contextmanager
def _damage_of(path: Path, kind: str) -> Iterator[None]:
    """Turn an error of pyarrow in this context into a DataError that names the file."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowMemoryError as error:  # also of a damaged length
        raise DataError(
            f"{path}: too little memory to read it ({error}); write it with smaller row groups, or get it again if it is damaged"
        ) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or ["no message"])[0]
        raise DataError(f"{path}: a damaged {kind} file ({reason}); get it again") from error
    except DataError:
        raise
    except (OverflowError, ValueError) as error:
        raise _without_python_value(path, error) from error


def _without_python_value(where: object, error: Exception) -> DataError:
    """Return the error of a value that Python cannot hold, such as a timestamp after the year 9999 or `infinity` of a database."""
    return DataError(f"{where}: holds a value that Python cannot hold ({error}); convert or drop its column")


class _PiecewiseRows(Rows):
    """Rows of a file in pieces, one of which is in memory as Arrow at a time; only the rows taken become Python objects."""

    kind: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._current: tuple[int, Any] = (-1, None)
        self._starts: list[int] = np.cumsum([0, *self._sizes()]).tolist()

    @abstractmethod
    def _sizes(self) -> Sequence[int]:
        """Return the rows of each piece."""

    @abstractmethod
    def _piece(self, number: int) -> Any:
        """Return a piece, as a table or a record batch."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_current": (-1, None)}

    def __len__(self) -> int:
        return self._starts[-1]

    def take(self, indices: Sequence[int]) -> list[Row]:
        rows: list[Row] = []
        start = 0
        for stop in range(1, len(indices) + 1):  # one conversion for consecutive rows of the same piece
            first, last = indices[start], indices[stop - 1]
            number = bisect_right(self._starts, first) - 1
            if stop < len(indices) and indices[stop] == last + 1 < self._starts[number + 1]:
                continue
            with _damage_of(self.path, self.kind):
                if number != self._current[0]:
                    self._current = (number, self._piece(number))
                taken = self._current[1].slice(first - self._starts[number], last - first + 1).to_pylist()
            rows += map(drop_schema_nulls, taken)
            start = stop
        return rows

    def where(self, index: int) -> str:
        return f"{self.path}, row {index}"


class ParquetRows(_PiecewiseRows):
    """Rows of a Parquet file, with one row group in memory at a time."""

    kind = "Parquet"

    def __init__(self, path: Path) -> None:
        self._checked: set[int] = set()
        """Row groups whose size is known to be reasonable."""
        super().__init__(path)

    def _open(self) -> Any:
        if self._file is None:
            import pyarrow.parquet as pq

            self._file = pq.ParquetFile(self.path, memory_map=True, page_checksum_verification=True)
        return self._file

    def _sizes(self) -> Sequence[int]:
        metadata = self._open().metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        if any(size < 0 for size in sizes):
            raise OSError("a row group of fewer than 0 rows")
        return sizes

    def _piece(self, number: int) -> Any:
        if number not in self._checked:
            self._check_size(number)
            self._checked.add(number)
        return self._open().read_row_group(number)

    def _check_size(self, group: int) -> None:
        """Raise DataError if a row group would take far more memory than its file explains.

        A value that a dictionary holds once can be in every row: a file of a kilobyte becomes terabytes.
        """
        metadata = self._open().metadata
        limit = max(MAX_GROUP_BYTES, MAX_EXPANSION * self.path.stat().st_size)
        total, texts = 0, []
        for index in range(metadata.num_columns):
            column, schema = metadata.row_group(group).column(index), metadata.schema.column(index)
            total += max(column.total_uncompressed_size, column.num_values * max(8, schema.length))
            if schema.physical_type == "BYTE_ARRAY":
                texts.append((schema.path, column.total_uncompressed_size))
        for path, declared in texts:
            if total <= limit:
                total += max(0, self._text_size(group, path, declared, limit) - declared)
        if total > limit:
            raise DataError(
                f"{self.path}: its row group {group} would take more than {limit >> 30:,} GiB of memory, over {MAX_EXPANSION} times "
                "the file; write it with smaller row groups, or get it again"
            )

    def _text_size(self, group: int, column: str, declared: int, limit: int) -> int:
        """Return the bytes of the texts of a column, or some number over `limit`, without having them all in memory."""
        import pyarrow as pa

        if declared < 1 << 31:
            # Arrow reads no dictionary from differences between texts, and none of more than 2 GiB.
            with suppress(pa.ArrowCapacityError, pa.ArrowNotImplementedError, OSError):
                columns = self._encoded(column).read_row_group(group, columns=[column]).columns
                return sum(_text_bytes(chunk) for column in columns for chunk in column.chunks)
        size = 0
        for batch in self._open().iter_batches(batch_size=64, row_groups=[group], columns=[column]):
            size += batch.nbytes
            if size > limit:
                break
        return size

    def _encoded(self, column: str) -> Any:
        """Return the file, opened so that the texts of a column stay in their dictionary."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(
            self.path,
            metadata=self._open().metadata,
            memory_map=True,
            page_checksum_verification=True,
            read_dictionary=[column],
            arrow_extensions_enabled=False,  # JSON would not be read as a dictionary
        )


def _text_bytes(array: Any) -> int:
    """Return the bytes of the texts of an Arrow array, each as often as it occurs, if they are in dictionaries."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(map(_text_bytes, array.flatten()))
    return _text_bytes(array.flatten()) if pa.types.is_nested(kind) else 0


class DatasetRows(Rows):
    """Rows of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, origin: str = "") -> None:
        # Of the formats only a user's transform gives rows of Python values.
        chosen = dataset.format
        is_plain = chosen["type"] in (None, "custom")
        hidden = {"columns": chosen["columns"], "output_all_columns": chosen["output_all_columns"]}
        self._dataset = dataset if is_plain else dataset.with_format(None, **hidden)
        self._origin = origin

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, indices: Sequence[int]) -> list[Row]:
        try:
            columns = self._dataset[list(indices)]
        except (OverflowError, ValueError) as error:
            raise _without_python_value(self._origin or "a data set", error) from error
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return [drop_schema_nulls(row) for row in rows]

    def where(self, index: int) -> str:
        return f"{self._origin}, row {index}" if self._origin else f"row {index}"


def drop_schema_nulls(row: Row) -> Row:
    """Return a row of a columnar file without the nulls in `tools` and in the arguments of tool calls.

    The schema of such a file gives every object of a column the keys of all of them, with null where an object lacks a
    key, such as an argument that was not passed. An argument passed as null cannot be distinguished from that; in JSON
    it can, so JSON rows keep their nulls.
    """
    return {name: _drop_nulls(value) if name == "tools" else _clean_tool_calls(value) for name, value in row.items()}


def _clean_tool_calls(value: Any) -> Any:
    if isinstance(value, dict) and value.get("tool_calls"):
        return {**value, "tool_calls": [_clean_tool_call(call) for call in value["tool_calls"]]}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_clean_tool_calls(item) for item in value]
    return value


def _clean_tool_call(call: Any) -> Any:
    """Return a tool call with the arguments that were passed; an empty dict if it has none."""
    if not isinstance(call, dict):
        return call
    inner = call["function"] if isinstance(call.get("function"), dict) else call
    arguments = inner.get("arguments")
    kept = _drop_nulls({**inner, "arguments": {} if arguments is None else arguments})
    return _drop_nulls({**call, "function": kept}) if inner is not call else kept


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items() if item is not None}
    return [_drop_nulls(item) for item in value] if isinstance(value, list) else value


def read_parquet(path: Path) -> Rows:
    """Return the rows of a Parquet file; raises DataError if it is damaged."""
    with _damage_of(path, "Parquet"):
        return ParquetRows(path)


class IndexedShard(Shard):
    """Rows that can be taken by number without loading all of them: Parquet, Arrow, sets saved by `datasets`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def read(self, offset: ByteOffset, count: int) -> tuple[Rows, ByteOffset, bool]:
        start = offset.number
        stop = min(start + count, len(self._rows))
        chosen = range(start, stop)
        taken = LocatedRows(self._rows.take(chosen), [self._rows.where(index) for index in chosen])
        return taken, ByteOffset(stop, stop), stop == len(self._rows)


class IterableShard(Shard):
    """Rows of a `datasets.IterableDataset`; reading from any other offset than the current one skips rows first."""

    def __init__(self, dataset: Any, origin: str) -> None:
        self._dataset, self._origin = dataset, origin
        self._iterator: Iterator[Row] = iter(())
        self._row = -1

    def read(self, offset: ByteOffset, count: int) -> tuple[Rows, ByteOffset, bool]:
        start = offset.number
        try:
            if start != self._row:
                self._iterator = iter(self._dataset.skip(start) if start else self._dataset)
            rows = [drop_schema_nulls(row) for row in islice(self._iterator, count)]
        except Exception as error:  # datasets raises many exception types if it cannot read on
            raise DataError(
                f"{self._origin}, after row {start}: reading failed ({type(error).__name__}: {error}); check that the dataset "
                f"is reachable, then start the run again, which resumes from the last checkpoint"
            ) from error
        self._row = start + len(rows)
        locations = [f"{self._origin}, row {index}" for index in range(start, self._row)]
        return LocatedRows(rows, locations), ByteOffset(self._row, self._row), len(rows) < count


class ArrowRows(_PiecewiseRows):
    """Rows of a memory-mapped Arrow file or stream, by record batches.

    One batch of a compressed file is in memory at a time, but all of a compressed stream, which has no index.
    """

    kind = "Arrow"

    def _open(self) -> Any:
        """Return the number of batches, and what returns one of them."""
        if self._file is None:
            import pyarrow as pa

            mapped = pa.memory_map(str(self.path))
            try:
                reader = pa.ipc.open_file(mapped)
                self._file = reader.num_record_batches, reader.get_batch
            except pa.ArrowInvalid:  # `datasets` writes the stream format with the same suffix
                mapped.seek(0)
                batches = list(pa.ipc.open_stream(mapped))
                self._file = len(batches), batches.__getitem__
        return self._file

    def _sizes(self) -> Sequence[int]:
        count, batch = self._open()
        return [batch(number).num_rows for number in range(count)]

    def _piece(self, number: int) -> Any:
        batch = self._open()[1](number)
        batch.validate(full=True)  # damaged offsets would be read from other memory
        return batch


def read_arrow(path: Path) -> Rows:
    """Return the rows of an Arrow file; raises DataError if it is damaged."""
    with _damage_of(path, "Arrow"):
        return ArrowRows(path)
