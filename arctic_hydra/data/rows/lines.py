"""Rows of files that hold neither JSON nor Parquet: Arrow, CSV, plain text."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arctic_hydra.data.rows.base import ListRows, Row, Rows, without_filled_nulls
from arctic_hydra.errors import DataError


class ArrowRows(Rows):
    """Rows of an Arrow file or stream, memory-mapped, one record batch as Python objects at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._batches: list[Any] | None = None
        self._current: tuple[int, list[Row]] = (-1, [])
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._open())])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": None, "_current": (-1, [])}

    def _open(self) -> list[Any]:
        if self._batches is None:
            import pyarrow as pa

            mapped = pa.memory_map(str(self.path))
            try:
                reader = pa.ipc.open_file(mapped)
                self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            except pa.ArrowInvalid:  # `datasets` writes streams under the same suffix
                mapped.seek(0)
                self._batches = list(pa.ipc.open_stream(mapped))
        return self._batches

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: Sequence[int]) -> list[Row]:
        rows: list[Row] = []
        for index in indices:
            number = int(np.searchsorted(self._starts, index, side="right")) - 1
            if number != self._current[0]:
                self._current = (number, [without_filled_nulls(row) for row in self._open()[number].to_pylist()])
            rows.append(self._current[1][index - int(self._starts[number])])
        return rows

    def where(self, index: int) -> str:
        return f"{self.path}, row {index}"


class LinedRows(ListRows):
    """Rows in memory that know the line each one starts on."""

    def __init__(self, rows: Sequence[Row], path: Path, lines: Sequence[int]) -> None:
        super().__init__(rows, str(path))
        self._lines = lines

    def where(self, index: int) -> str:
        return f"{self._origin}:{self._lines[index]}"


def read_arrow(path: Path) -> Rows:
    """Return the rows of an Arrow file; raises DataError when it is damaged."""
    import pyarrow as pa

    try:
        return ArrowRows(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: a damaged Arrow file ({str(error).splitlines()[0]}); get it again") from error


def read_csv(path: Path, delimiter: str = "") -> Rows:
    """Return the rows of a CSV file with a header; empty: comma, or tab for .tsv.

    Raises DataError naming the line of a row with too many or too few fields.
    """
    lines = (f"{line}\n" for line in _text(path).split("\n"))
    found = list(csv_rows(lines, path, delimiter_of(path, delimiter)))
    if not found:
        raise DataError(f"{path}: holds no row below its header; expected at least one")
    return LinedRows([row for _, row in found], path, [line for line, _ in found])


def delimiter_of(path: Path, delimiter: str) -> str:
    """Return what stands between the values of a CSV file, where it is not given."""
    return delimiter or ("\t" if path.suffix == ".tsv" else ",")


def csv_rows(
    lines: Iterable[str], path: Path, delimiter: str, header: list[str] | None = None, before: int = 0
) -> Iterator[tuple[int, Row]]:
    """Yield line number and row; the first line is the header unless one is given. `before` lines came earlier."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(lines, delimiter=delimiter)
    line = before + 1
    try:
        for values in reader:
            start, line = line, before + reader.line_num + 1
            if not values:
                continue
            if not header:
                header = values
                continue
            if len(values) != len(header):
                raise DataError(
                    f"{path}:{start}: has {len(values)} fields, but the header has {len(header)} ({', '.join(header)}); "
                    f"expected as many; quote texts that hold the delimiter"
                )
            yield start, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{before + reader.line_num}: not CSV ({error}); correct the line") from error


def read_text(path: Path, sample_by: str) -> Rows:
    """Return one row {text} for each line or paragraph of a text file, or one for all of it; blank ones are skipped."""
    text = _text(path)
    if sample_by == "document":
        found: list[tuple[int, str]] = [(1, text)]
    elif sample_by == "paragraph":
        found = list(_paragraphs(text))
    else:
        found = list(enumerate(text.split("\n"), start=1))
    kept = [(line, part) for line, part in found if part.strip()]
    if not kept:
        raise DataError(f"{path}: the file is empty; expected text")
    return LinedRows([{"text": part} for _, part in kept], path, [line for line, _ in kept])


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    start, part = 1, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            start = start if part else number
            part.append(line)
        elif part:
            yield start, "\n".join(part)
            part = []


def _text(path: Path) -> str:
    return decode(path.read_bytes(), path, 1).replace("\r\n", "\n")


def decode(data: bytes, path: Path, first_line: int) -> str:
    """Return the text of a file, or of its lines from `first_line` on; raises DataError naming the line."""
    try:
        text = data.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; expected UTF-8 text; convert it, e.g. "
            f"`iconv -f latin1 -t utf-8`"
        ) from error
    if "\0" in text:
        line = first_line + text.count("\n", 0, text.index("\0"))
        raise DataError(
            f"{path}:{line}: holds NUL bytes, which a crash or a full disk leaves in files; get the file again"
        )
    return text
