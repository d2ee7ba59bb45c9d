"""Shards of a source, read a few rows at a time from any offset: what streaming needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from arctic_hydra.data.rows.base import Row, Rows


class ByteOffset(NamedTuple):
    """Position between two rows of a shard, from which it can be read on."""

    number: int
    """Rows before this position; in files that are read line by line, lines."""
    offset: int
    """Byte that the next line starts at; in other shards the same as `number`."""


START = ByteOffset(0, 0)


class Shard(ABC):
    """A file or a part of a set whose rows come in one order."""

    @abstractmethod
    def read(self, offset: ByteOffset, count: int) -> tuple[Rows, ByteOffset, bool]:
        """Return up to `count` rows from `offset` on, the offset after them, and whether nothing can follow.

        Raises DataError naming file, line and reason when rows cannot be read.
        """


class LocatedRows(Rows):
    """Rows in memory, each with the name of its place."""

    def __init__(self, rows: Sequence[Row], places: Sequence[str]) -> None:
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return [self._rows[index] for index in indices]

    def where(self, index: int) -> str:
        return self._places[index]


class LazyShard(Shard):
    """A shard that is opened when it is first read and closed at its end: a set may have thousands."""

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
