"""Shards of a source, which streaming reads a few rows at a time from any offset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from arctic_hydra.data.rows.base import Row, Rows


class ByteOffset(NamedTuple):
    """Position between two rows of a shard, from which reading can resume."""

    number: int
    """Rows before this position; in files that are read line by line, lines."""
    offset: int
    """Byte at which the next line starts; in other shards the same as `number`."""


START = ByteOffset(0, 0)


class Shard(ABC):
    """A file or a part of a data set, with its rows in a fixed order."""

    @abstractmethod
    def read(self, offset: ByteOffset, count: int) -> tuple[Rows, ByteOffset, bool]:
        """Return up to `count` rows starting at `offset`, the offset after them, and whether the shard has ended.

        Raises DataError naming file, line and reason if rows cannot be read.
        """


class LocatedRows(Rows):
    """Rows in memory, each with its location."""

    def __init__(self, rows: Sequence[Row], locations: Sequence[str]) -> None:
        self._rows, self._locations = rows, locations

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return [self._rows[index] for index in indices]

    def where(self, index: int) -> str:
        return self._locations[index]


class LazyShard(Shard):
    """A shard that is opened when it is first read and closed at its end, since a data set may have thousands of shards."""

    def __init__(self, make: Callable[[], Shard]) -> None:
        self._make = make
        self._shard: Shard | None = None

    def read(self, offset: ByteOffset, count: int) -> tuple[Rows, ByteOffset, bool]:
        if self._shard is None:
            self._shard = self._make()
        rows, offset, ended = self._shard.read(offset, count)
        if ended:
            self._shard = None
        return rows, offset, ended
