"""Rows of JSON and JSON Lines files."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from arctic_hydra.data.rows.base import ListRows, Row, Rows
from arctic_hydra.data.rows.lines import LineReader
from arctic_hydra.data.rows.shard import ByteOffset, Shard
from arctic_hydra.errors import DataError


class JsonLinesRows(Rows):
    """One JSON object per line; only the bounds of lines are kept in memory, each line is parsed when it is taken."""

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
                try:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:  # such as a file of /proc, whose size is 0
                    raise DataError(f"{self.path}: cannot be read ({error}); copy it to a regular file") from error
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
    """Return the object on a line, row `index` of `rows`; raises DataError naming the line if it is not a JSON object."""
    if b"\0" in line:
        raise DataError(
            f"{rows.where(index)}: contains NUL bytes, which a crash or a full disk leaves in files; expected one JSON "
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
            f"{'the file may be truncated: ' if is_last else ''}correct or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{rows.where(index)}: got a JSON {type(row).__name__}, expected an object {{...}}; correct or remove the line"
        )
    return row


def _line_ends(data: mmap.mmap) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the offset of each newline, and the end of the data if the last line has no newline."""
    raw, step = np.frombuffer(data, np.uint8), 1 << 20  # bounds the memory of the comparison
    found = [np.flatnonzero(raw[at : at + step] == ord("\n")) + at for at in range(0, len(raw), step)]
    if data[len(data) - 1] != ord("\n"):
        found.append(np.array([len(data)], dtype=np.int64))
    return np.concatenate(found)


def _excerpt(line: bytes) -> str:
    text = line[:77].decode("utf-8", errors="replace")
    return repr(text + "..." if len(line) > 77 else text)


def read_json_lines(path: Path) -> Rows:
    """Return the rows of a JSON Lines file; raises DataError if the first one is not a JSON object on one line."""
    rows = JsonLinesRows(path)
    try:
        rows.take([0])
    except DataError as error:
        if _is_one_object(path):
            raise DataError(
                f"{path}: contains a single JSON object over several lines; expected one object per line, or an array [...] of "
                f"objects; write its rows as an array"
            ) from error
        raise
    return rows


def _is_one_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def read_json_array(path: Path) -> Rows:
    """Return the rows of a JSON file with an array of objects; raises DataError naming the line or row at fault."""
    data = path.read_bytes()
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; expected UTF-8 text; convert it"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON ({error}); expected an array of objects; correct it"
        ) from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise DataError(f"{path}: not JSON ({error}); expected an array of objects; correct it") from error
    except RecursionError as error:
        raise DataError(f"{path}: JSON nested too deeply to read; expected an array of objects; correct it") from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {index}: got a JSON {type(row).__name__}, expected an object {{...}}; correct it"
            )
    if not rows:
        raise DataError(f"{path}: the file is empty (an array without rows); expected at least one object")
    return ListRows(rows, str(path))


class UnparsedJsonRows(Rows):
    """Lines of JSON that are parsed when they are taken, in the process that needs them."""

    def __init__(self, path: Path, numbers: Sequence[int], lines: Sequence[bytes]) -> None:
        self._path, self._numbers, self._lines = path, numbers, lines

    def __len__(self) -> int:
        return len(self._lines)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return [parse_json_line(self._lines[index], self, index) for index in indices]

    def where(self, index: int) -> str:
        return f"{self._path}:{self._numbers[index]}"


class JsonLinesShard(Shard):
    """A file with one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, offset: ByteOffset, count: int) -> tuple[Rows, ByteOffset, bool]:
        lines = LineReader(self._path, offset)
        filled = ((lines.number, line) for line in lines if line.strip())
        kept = list(islice(filled, count))
        return (
            UnparsedJsonRows(self._path, [n for n, _ in kept], [line for _, line in kept]),
            lines.position,
            lines.ended,
        )
