"""Pieces of a source that are read from any place on, a few rows at a time: what streaming needs."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from arctic_hydra.data.rows.base import ParquetRows, Row, Rows, parse_json_line, without_filled_nulls
from arctic_hydra.data.rows.lines import csv_rows, decode, delimiter_of, read_arrow
from arctic_hydra.data.source.discover import check_readable
from arctic_hydra.errors import DataError

Place = tuple[int, int]
"""How many rows (lines, in files of lines) lie before, and where reading goes on: a byte in such files, else a row."""

START: Place = (0, 0)


class Shard(ABC):
    """A file or a part of a set whose rows come in one order."""

    @abstractmethod
    def read(self, place: Place, count: int) -> tuple[Rows, Place, bool]:
        """Return up to `count` rows from `place` on, the place behind them, and whether nothing can follow.

        Raises DataError naming file, line and reason when rows cannot be read.
        """


class TakenRows(Rows):
    """Rows in memory, each with the name of its place."""

    def __init__(self, rows: Sequence[Row], places: Sequence[str]) -> None:
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return [self._rows[index] for index in indices]

    def where(self, index: int) -> str:
        return self._places[index]


class RawLines(Rows):
    """Lines of JSON that are parsed when they are taken, so in the process that needs them."""

    def __init__(self, path: Path, numbers: Sequence[int], lines: Sequence[bytes]) -> None:
        self._path, self._numbers, self._lines = path, numbers, lines

    def __len__(self) -> int:
        return len(self._lines)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return [parse_json_line(self._lines[index], self, index) for index in indices]

    def where(self, index: int) -> str:
        return f"{self._path}:{self._numbers[index]}"


class OpenedWhenRead(Shard):
    """A shard that is opened when it is first read and closed at its end: a set may have thousands."""

    def __init__(self, make: Callable[[], Shard]) -> None:
        self._make = make
        self._shard: Shard | None = None

    def read(self, place: Place, count: int) -> tuple[Rows, Place, bool]:
        if self._shard is None:
            self._shard = self._make()
        rows, place, ended = self._shard.read(place, count)
        if ended:
            self._shard = None
        return rows, place, ended


class IndexedShard(Shard):
    """Rows that can be taken by their number without holding them: Parquet, Arrow, sets saved by `datasets`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def read(self, place: Place, count: int) -> tuple[Rows, Place, bool]:
        start = place[0]
        stop = min(start + count, len(self._rows))
        chosen = range(start, stop)
        taken = TakenRows(self._rows.take(chosen), [self._rows.where(index) for index in chosen])
        return taken, (stop, stop), stop == len(self._rows)


class _Lines:
    """The lines of a file from a place on, which it moves along."""

    def __init__(self, path: Path, place: Place) -> None:
        self.path = path
        self.number, self.offset = place

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                self.number += 1
                self.offset += len(line)
                yield line

    def texts(self) -> Iterator[str]:
        """Yield the lines as text, the end of each as a file that is read whole has it."""
        for line in self:
            text = decode(line, self.path, self.number)
            yield f"{text[:-2]}\n" if text.endswith("\r\n") else text

    @property
    def place(self) -> Place:
        """Where the next line starts."""
        return self.number, self.offset

    @property
    def ended(self) -> bool:
        """Whether that is the end of the file."""
        return self.offset >= self.path.stat().st_size


class JsonLinesShard(Shard):
    """A file with one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, place: Place, count: int) -> tuple[Rows, Place, bool]:
        lines = _Lines(self._path, place)
        filled = ((lines.number, line) for line in lines if line.strip())
        kept = list(islice(filled, count))
        return RawLines(self._path, [n for n, _ in kept], [line for _, line in kept]), lines.place, lines.ended


class TextLinesShard(Shard):
    """A text file with one text per line; blank lines are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, place: Place, count: int) -> tuple[Rows, Place, bool]:
        lines = _Lines(self._path, place)
        texts = ((lines.number, text.removesuffix("\n")) for text in lines.texts())
        kept = list(islice(((number, text) for number, text in texts if text.strip()), count))
        rows = [{"text": text} for _, text in kept]
        return TakenRows(rows, [f"{self._path}:{number}" for number, _ in kept]), lines.place, lines.ended


class CsvShard(Shard):
    """A CSV file with a header."""

    def __init__(self, path: Path, delimiter: str = "") -> None:
        self._path, self._delimiter = path, delimiter_of(path, delimiter)

    def read(self, place: Place, count: int) -> tuple[Rows, Place, bool]:
        lines = _Lines(self._path, START)
        header: list[str] = next(
            (values for values in csv.reader(lines.texts(), delimiter=self._delimiter) if values), []
        )
        if place != START:
            lines = _Lines(self._path, place)
        first = lines.number
        kept = list(islice(csv_rows(lines.texts(), self._path, self._delimiter, header, first), count))
        places = [f"{self._path}:{number}" for number, _ in kept]
        return TakenRows([row for _, row in kept], places), lines.place, lines.ended


class IterableShard(Shard):
    """Rows of a `datasets.IterableDataset`; a place that it has not just read up to is reached by skipping."""

    def __init__(self, dataset: Any, origin: str) -> None:
        self._dataset, self._origin = dataset, origin
        self._iterator: Iterator[Row] = iter(())
        self._row = -1

    def read(self, place: Place, count: int) -> tuple[Rows, Place, bool]:
        start = place[0]
        try:
            if start != self._row:
                self._iterator = iter(self._dataset.skip(start) if start else self._dataset)
            rows = [without_filled_nulls(row) for row in islice(self._iterator, count)]
        except Exception as error:  # datasets raises many kinds for one cause: the next rows could not be had
            raise DataError(
                f"{self._origin}, after row {start}: cannot be read on ({type(error).__name__}: {error}); expected a "
                f"reachable set; the same command goes on from the last checkpoint"
            ) from error
        self._row = start + len(rows)
        places = [f"{self._origin}, row {index}" for index in range(start, self._row)]
        return TakenRows(rows, places), (self._row, self._row), len(rows) < count


def file_shard(path: Path) -> Shard:
    """Return the shard of a file: its kind is told as `files.read_file` tells it. Raises DataError for what has no lines."""
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
    return [OpenedWhenRead(lambda path=path: make(path)) for path in paths]  # type: ignore[misc]
