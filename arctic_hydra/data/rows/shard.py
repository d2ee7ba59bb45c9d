"""Shards of a source, read a few rows at a time from any offset: what streaming needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from arctic_hydra.data.rows.base import Row, Rows

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
