"""Rows of a source, read lazily in chunks and picklable, so that worker processes parse their own part."""

from __future__ import annotations

import hashlib
import json
import mmap
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from arctic_hydra.data.formats.messages import RowProblem, columns_of
from arctic_hydra.data.formats.reading import RowFormat, detect
from arctic_hydra.errors import DataError

Row = dict[str, Any]


class Rows(ABC):
    """A sequence of rows that can say where each one came from."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: Sequence[int]) -> list[Row]:
        """Return the rows at `indices`; raises DataError naming file and line for one that cannot be read."""

    def where(self, index: int) -> str:
        """Name the place of row `index` for a person."""
        return f"row {index}"

    def columns(self) -> list[str]:
        """Return the column names of the first row."""
        return sorted(self.take([0])[0]) if len(self) else []


class ListRows(Rows):
    """Rows in memory; `origin` is the file they came from."""

    def __init__(self, rows: Sequence[Row], origin: str = "") -> None:
        self._rows = rows
        self._origin = origin

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return [self._rows[index] for index in indices]

    def where(self, index: int) -> str:
        return f"{self._origin}, row {index}" if self._origin else f"row {index}"


class JsonLines(Rows):
    """One JSON object per line; only the line bounds are held, each line is parsed when it is taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        data = self._bytes()
        ends = _line_ends(data)
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        filled = np.frombuffer(data, np.uint8)[starts] == ord("{")
        for line in np.flatnonzero(~filled).tolist():
            filled[line] = bool(data[starts[line] : ends[line]].strip())
        self._starts, self._ends, self._lines = starts[filled], ends[filled], np.flatnonzero(filled) + 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def _bytes(self) -> mmap.mmap:
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def __len__(self) -> int:
        return len(self._starts)

    def take(self, indices: Sequence[int]) -> list[Row]:
        data, last = self._bytes(), len(self) - 1
        chosen = np.asarray(indices, dtype=np.int64)
        bounds = zip(indices, self._starts[chosen].tolist(), self._ends[chosen].tolist(), strict=True)
        return [parse_json_line(data[start:end], self, index, index == last) for index, start, end in bounds]

    def where(self, index: int) -> str:
        return f"{self.path}:{self._lines[index]}"


def parse_json_line(line: bytes, rows: Rows, index: int, is_last: bool = False) -> Row:
    """Return the object on a line, row `index` of `rows`; raises DataError that names the place when there is none."""
    if b"\0" in line:
        raise DataError(
            f"{rows.where(index)}: holds NUL bytes, which a crash or a full disk leaves in files; expected one JSON "
            f"object per line; get the file again"
        )
    line = line.rstrip()
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{rows.where(index)}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not UTF-8; "
            f"expected UTF-8 text; convert the file, e.g. `iconv -f latin1 -t utf-8`"
        ) from error
    except RecursionError as error:
        raise DataError(
            f"{rows.where(index)}: JSON nested too deeply to read; got {_excerpt(line)}; correct or remove the line"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{rows.where(index)}: not JSON ({error}); got {_excerpt(line)}; expected one JSON object per line; "
            f"{'the file may be cut off: ' if is_last else ''}correct or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{rows.where(index)}: got a JSON {type(row).__name__}, expected an object {{...}}; correct or remove the line"
        )
    return row


class ParquetRows(Rows):
    """Rows of a Parquet file, one row group in memory at a time (as Arrow; Python objects are made of what is taken)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._group: tuple[int, Any] = (-1, None)
        metadata = self._open().metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts: list[int] = np.cumsum([0, *sizes]).tolist()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_group": (-1, None)}

    def _open(self) -> Any:
        if self._file is None:
            import pyarrow.parquet as pq

            self._file = pq.ParquetFile(self.path, memory_map=True)
        return self._file

    def __len__(self) -> int:
        return self._starts[-1]

    def take(self, indices: Sequence[int]) -> list[Row]:
        rows: list[Row] = []
        start = 0
        for stop in range(1, len(indices) + 1):  # one conversion per run of rows that follow each other in a group
            first, last = indices[start], indices[stop - 1]
            group = bisect_right(self._starts, first) - 1
            if stop < len(indices) and indices[stop] == last + 1 < self._starts[group + 1]:
                continue
            if group != self._group[0]:
                self._group = (group, self._open().read_row_group(group))
            taken = self._group[1].slice(first - self._starts[group], last - first + 1).to_pylist()
            rows += map(without_filled_nulls, taken)
            start = stop
        return rows

    def where(self, index: int) -> str:
        return f"{self.path}, row {index}"


class DatasetRows(Rows):
    """Rows of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, origin: str = "") -> None:
        self._dataset = dataset
        self._origin = origin

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, indices: Sequence[int]) -> list[Row]:
        columns = self._dataset[list(indices)]
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return [without_filled_nulls(row) for row in rows]

    def where(self, index: int) -> str:
        return f"{self._origin}, row {index}" if self._origin else f"row {index}"


class JoinedRows(Rows):
    """The rows of several files, one after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0] + [len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return cast(int, self._starts[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]

    def take(self, indices: Sequence[int]) -> list[Row]:
        rows: list[Row] = []
        places = [self._locate(index) for index in indices]
        start = 0
        for stop in range(1, len(places) + 1):  # one call per run of rows that share a file
            if stop == len(places) or places[stop][0] != places[start][0]:
                rows += self._parts[places[start][0]].take([inner for _, inner in places[start:stop]])
                start = stop
        return rows

    def where(self, index: int) -> str:
        part, inner = self._locate(index)
        return self._parts[part].where(inner)


class SelectedRows(Rows):
    """Some rows of another sequence, in the order of `indices`."""

    def __init__(self, rows: Rows, indices: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._rows = rows
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return self._rows.take([int(self._indices[index]) for index in indices])

    def where(self, index: int) -> str:
        return self._rows.where(int(self._indices[index]))


def _line_ends(data: mmap.mmap) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the offset of each newline, and of the end of the data where the last line has none."""
    raw, step = np.frombuffer(data, np.uint8), 1 << 20  # bounds the memory of the comparison
    found = [np.flatnonzero(raw[at : at + step] == ord("\n")) + at for at in range(0, len(raw), step)]
    if data[len(data) - 1] != ord("\n"):
        found.append(np.array([len(data)], dtype=np.int64))
    return np.concatenate(found)


def without_filled_nulls(row: Row) -> Row:
    """Return a row of a columnar file without the nulls in `tools` and in the arguments of tool calls.

    Such a file gives every object of a column the keys of all of them, with null for those that its writer left out: an
    argument that nobody passed. One that was passed as null cannot be told from it there; JSON keeps the difference.
    """
    return {name: _drop_nulls(value) if name == "tools" else _with_true_calls(value) for name, value in row.items()}


def _with_true_calls(value: Any) -> Any:
    if isinstance(value, dict) and value.get("tool_calls"):
        return {**value, "tool_calls": [_true_call(call) for call in value["tool_calls"]]}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_with_true_calls(item) for item in value]
    return value


def _true_call(call: Any) -> Any:
    """Return a call whose arguments are those that were passed: none at all where its writer left the key out."""
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


def as_rows(value: Any, origin: str = "") -> Rows:
    """Wrap what a source's `load` returned."""
    if isinstance(value, Rows):
        return value
    if hasattr(value, "column_names"):
        return DatasetRows(value, origin)
    return ListRows(value, origin)


def detect_format(rows: Rows) -> RowFormat:
    """Return the form of the first row that has one, among the first 100.

    Raises DataError naming the first row when none has, or when a row fits several.
    """
    head = rows.take(range(min(100, len(rows))))
    for index, row in enumerate(head):
        try:
            found = detect(row)
        except RowProblem as problem:
            raise DataError(f"{rows.where(index)}: {problem}") from problem
        if found is not None:
            return found
    if not head:
        return RowFormat.messages  # nothing to read; the count of rows says so
    raise DataError(
        f"{rows.where(0)}: no known format; got the columns {columns_of(head[0])}; expected messages, conversations, "
        f"instruction and output, prompt and completion, question and answer, or text; set the source's role_mapping="
        f"{{user: <column>, assistant: <column>}} or format="
    )


def hash_rows(rows: Rows) -> str:
    """Return a hash over the content and order of all rows."""
    digest = hashlib.sha256()
    for start in range(0, len(rows), 1000):
        for row in rows.take(range(start, min(start + 1000, len(rows)))):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def slice_rows(rows: Rows, start: str, stop: str) -> Rows:
    """Return rows [start, stop): numbers or percents as text, empty for an end, negative from the end."""

    def place(text: str, default: int) -> int:
        if not text:
            return default
        return round(len(rows) * int(text[:-1]) / 100) if text.endswith("%") else int(text)

    everything = np.arange(len(rows), dtype=np.int64)
    return SelectedRows(rows, everything[slice(place(start, 0), place(stop, len(rows)))])


def sample_rows(rows: Rows, ratio: float | None, count: int | None, seed: int) -> Rows:
    """Return a random subset in its original order: a share, or a number of rows (all where there are fewer)."""
    if ratio is None and count is None:
        return rows
    wanted = count if count is not None else round(len(rows) * cast(float, ratio))
    if wanted >= len(rows):
        return rows
    # Raw bit generator output is stable over NumPy versions; Generator methods are not promised to be.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(rows)), kind="stable")
    return SelectedRows(rows, np.sort(order[:wanted]).astype(np.int64))


def _excerpt(line: bytes) -> str:
    text = line[:77].decode("utf-8", errors="replace")
    return repr(text + "..." if len(line) > 77 else text)
