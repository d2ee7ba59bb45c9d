"""Sequences of rows, read lazily and picklable, so that each worker process parses its own part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

Row = dict[str, Any]


class Rows(ABC):
    """A sequence of rows that knows the location of each one in its file."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: Sequence[int]) -> list[Row]:
        """Return the rows at `indices`; raises DataError naming file and line of one that cannot be read."""

    def where(self, index: int) -> str:
        """Return the location of row `index` for messages, such as `a.jsonl:12`."""
        return f"row {index}"

    def columns(self) -> list[str]:
        """Return the column names of the first row."""
        return sorted(self.take([0])[0]) if len(self) else []


class ListRows(Rows):
    """Rows in memory; `origin` names the file they were read from."""

    def __init__(self, rows: Sequence[Row], origin: str = "") -> None:
        self._rows = rows
        self._origin = origin

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return [self._rows[index] for index in indices]

    def where(self, index: int) -> str:
        return f"{self._origin}, row {index}" if self._origin else f"row {index}"


class JoinedRows(Rows):
    """The concatenated rows of several files."""

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
        located = [self._locate(index) for index in indices]
        start = 0
        for stop in range(1, len(located) + 1):  # one call for consecutive rows of the same file
            if stop == len(located) or located[stop][0] != located[start][0]:
                rows += self._parts[located[start][0]].take([inner for _, inner in located[start:stop]])
                start = stop
        return rows

    def where(self, index: int) -> str:
        part, inner = self._locate(index)
        return self._parts[part].where(inner)


class SelectedRows(Rows):
    """A selection of another sequence's rows, in the order of `indices`."""

    def __init__(self, rows: Rows, indices: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._rows = rows
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return self._rows.take([int(self._indices[index]) for index in indices])

    def where(self, index: int) -> str:
        return self._rows.where(int(self._indices[index]))


def slice_rows(rows: Rows, start: str, stop: str) -> Rows:
    """Return rows [start, stop), given as numbers or percentages; empty: first or last row, negative: from the end."""

    def bound(text: str, default: int) -> int:
        if not text:
            return default
        return round(len(rows) * int(text[:-1]) / 100) if text.endswith("%") else int(text)

    everything = np.arange(len(rows), dtype=np.int64)
    return SelectedRows(rows, everything[slice(bound(start, 0), bound(stop, len(rows)))])


def sample_rows(rows: Rows, ratio: float | None, count: int | None, seed: int) -> Rows:
    """Return a random subset in the original order, given as a share or as a number of rows (all if there are fewer)."""
    if ratio is None and count is None:
        return rows
    wanted = count if count is not None else round(len(rows) * cast(float, ratio))
    if wanted >= len(rows):
        return rows
    # The raw output of a bit generator is stable across NumPy versions; that of Generator methods may change.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(rows)), kind="stable")
    return SelectedRows(rows, np.sort(order[:wanted]).astype(np.int64))
