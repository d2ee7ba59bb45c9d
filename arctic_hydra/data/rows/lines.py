"""Rows of CSV and plain text files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from arctic_hydra.data.rows.base import ListRows, Row, Rows
from arctic_hydra.data.rows.shard import START, ByteOffset, LocatedRows, Shard
from arctic_hydra.errors import DataError
from arctic_hydra.human_numbers import listed, shorten


class LineNumberedRows(ListRows):
    """Rows in memory, each with the line that it starts on."""

    def __init__(self, rows: Sequence[Row], path: Path, lines: Sequence[int]) -> None:
        super().__init__(rows, str(path))
        self._lines = lines

    def where(self, index: int) -> str:
        return f"{self._origin}:{self._lines[index]}"


def read_csv(path: Path, delimiter: str = "") -> Rows:
    """Return the rows of a CSV file with a header; an empty `delimiter` is a comma, or a tab for .tsv.

    Raises DataError naming the line of a row with too many or too few fields.
    """
    lines = (f"{line}\n" for line in _text(path).split("\n"))
    found = list(csv_rows(lines, path, delimiter_of(path, delimiter)))
    if not found:
        raise DataError(f"{path}: has no rows below its header; expected at least one")
    return LineNumberedRows([row for _, row in found], path, [line for line, _ in found])


def delimiter_of(path: Path, delimiter: str) -> str:
    """Return the delimiter of a CSV file, by its suffix if `delimiter` is empty."""
    return delimiter or ("\t" if path.suffix == ".tsv" else ",")


def csv_rows(
    lines: Iterable[str], path: Path, delimiter: str, header: list[str] | None = None, before: int = 0
) -> Iterator[tuple[int, Row]]:
    """Yield line number and row; the first line is the header unless one is given. `before` lines were read already."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        lines, delimiter=delimiter, strict=True
    )  # else a quote that is not closed takes the rest of the file
    line = before + 1
    try:
        for values in reader:
            start, line = line, before + reader.line_num + 1
            if not values:
                continue
            if not header:
                header = values
                twice = next((name for place, name in enumerate(header) if name and name in header[:place]), "")
                if twice:  # empty cells, as spreadsheets write them, name no column
                    raise DataError(
                        f"{path}:{start}: the header has {shorten(twice)} more than once; expected distinct names; rename one"
                    )
                continue
            if len(values) != len(header):
                raise DataError(
                    f"{path}:{start}: has {len(values)} fields, but the header has {len(header)} ({listed(header)}); "
                    f"expected the same number; quote texts that contain the delimiter"
                )
            yield start, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}:{line}: the row that starts here is not CSV ({error}); expected each quoted text to be closed, and quotes in it "
            "to be doubled; correct the line"
        ) from error


def read_text(path: Path, sample_by: str) -> Rows:
    """Return one row {text} for each line or paragraph of a text file, or for the whole file; blank ones are skipped."""
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
    return LineNumberedRows([{"text": part} for _, part in kept], path, [line for line, _ in kept])


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
    """Decode a file, or its lines starting at `first_line`; raises DataError naming the line that is not text."""
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
            f"{path}:{line}: contains NUL bytes, which a crash or a full disk leaves in files; get the file again"
        )
    return text


class LineReader:
    """Iterates over the lines of a file starting at an offset, and keeps track of its position."""

    def __init__(self, path: Path, offset: ByteOffset) -> None:
        self.path = path
        self.number, self.offset = offset

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                self.number += 1
                self.offset += len(line)
                yield line

    def texts(self) -> Iterator[str]:
        """Yield the lines as text, with CRLF line ends converted as in a file that is read as a whole."""
        for line in self:
            text = decode(line, self.path, self.number)
            yield f"{text[:-2]}\n" if text.endswith("\r\n") else text

    @property
    def position(self) -> ByteOffset:
        """Offset of the next line."""
        return ByteOffset(self.number, self.offset)

    @property
    def ended(self) -> bool:
        """Whether the position is the end of the file."""
        return self.offset >= self.path.stat().st_size


class TextLinesShard(Shard):
    """A text file with one text per line; blank lines are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, offset: ByteOffset, count: int) -> tuple[Rows, ByteOffset, bool]:
        lines = LineReader(self._path, offset)
        texts = ((lines.number, text.removesuffix("\n")) for text in lines.texts())
        kept = list(islice(((number, text) for number, text in texts if text.strip()), count))
        rows = [{"text": text} for _, text in kept]
        return LocatedRows(rows, [f"{self._path}:{number}" for number, _ in kept]), lines.position, lines.ended


class CsvShard(Shard):
    """A CSV file with a header."""

    def __init__(self, path: Path, delimiter: str = "") -> None:
        self._path, self._delimiter = path, delimiter_of(path, delimiter)

    def read(self, offset: ByteOffset, count: int) -> tuple[Rows, ByteOffset, bool]:
        header = None
        if offset != START:
            above = LineReader(self._path, START).texts()
            header = next((values for values in csv.reader(above, delimiter=self._delimiter) if values), None)
        lines = LineReader(self._path, offset)
        kept = list(islice(csv_rows(lines.texts(), self._path, self._delimiter, header, offset.number), count))
        locations = [f"{self._path}:{number}" for number, _ in kept]
        return LocatedRows([row for _, row in kept], locations), lines.position, lines.ended
