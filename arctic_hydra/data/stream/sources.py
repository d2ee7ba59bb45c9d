"""The rows of streamed sources: shards in a new order in each pass, and the number of rows to read from each source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arctic_hydra.data.load.order import epoch_order
from arctic_hydra.data.rows.base import Rows
from arctic_hydra.data.rows.shard import START, ByteOffset, Shard
from arctic_hydra.errors import DataError

ROWS_PER_TASK = 250
"""Rows per task of a worker."""


@dataclass(frozen=True)
class Cursor:
    """Position of a stream in one source; its fields are stored in checkpoints."""

    passes: int = 0
    """Completed passes over the source."""
    shard: int = 0
    """Completed shards of this pass."""
    place: ByteOffset = START
    """Position of the next row in the current shard."""
    rows_in_pass: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the cursor as plain values."""
        return {**vars(self), "place": list(self.place)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Cursor:
        """Return the cursor with these values, as `to_dict()` returns them."""
        return cls(**{**plain, "place": ByteOffset(*plain["place"])})


class SourceStream:
    """The shards of one source; their order in each pass depends on the seed only, so all ranks read the same rows."""

    def __init__(self, key: str, shards: Sequence[Shard], seed: int) -> None:
        self.key = key
        self._shards, self._seed = shards, seed

    def read(self, cursor: Cursor, count: int) -> tuple[list[Rows], Cursor]:
        """Return up to `count` rows from the cursor on, in pieces, and the cursor after them.

        At the end of a pass fewer rows are returned, and the next call starts the next pass. Raises DataError if a whole pass
        has no row.
        """
        pieces: list[Rows] = []
        order = epoch_order(len(self._shards), self._seed, cursor.passes)
        while count:
            shard = self._shards[order[cursor.shard]]
            try:
                rows, place, ended = shard.read(cursor.place, min(count, ROWS_PER_TASK))
            except DataError as error:
                raise DataError(f"{self.key}: {error}") from error
            if len(rows):
                pieces.append(rows)
            count -= len(rows)
            in_pass = cursor.rows_in_pass + len(rows)
            if not ended:
                cursor = Cursor(cursor.passes, cursor.shard, place, in_pass)
            elif cursor.shard + 1 < len(self._shards):
                cursor = Cursor(cursor.passes, cursor.shard + 1, START, in_pass)
            elif in_pass == 0:
                raise DataError(f"{self.key}: has no rows; expected at least one")
            else:
                return pieces, Cursor(cursor.passes + 1)
        return pieces, cursor


def next_rows(weights: Sequence[float], rows: Sequence[int], sizes: Sequence[int], count: int) -> list[int]:
    """Return how many of the next `count` rows to read from each source, so that its share of all sizes equals its weight.

    `rows` and `sizes` are the totals of each source so far, with sizes in the unit of the weights (examples or tokens).
    Deviations from the weights so far are compensated.
    """
    shares = np.array(weights, dtype=np.float64) / float(sum(weights))
    so_far = np.array(sizes, dtype=np.float64)
    seen = np.array(rows, dtype=np.float64)
    known = (so_far > 0) & (seen > 0)
    usual = so_far[known].sum() / seen[known].sum() if known.any() else 1.0
    per_row = np.divide(so_far, seen, out=np.full(len(shares), usual), where=known)
    coming = count / (shares / per_row).sum()
    wanted = np.maximum(0.0, shares * (so_far.sum() + coming) - so_far) / per_row
    exact = wanted * (count / wanted.sum())
    whole = np.floor(exact).astype(np.int64)
    # Rows lost to rounding go to the largest remainders.
    for index in np.argsort(whole - exact, kind="stable")[: count - int(whole.sum())]:
        whole[index] += 1
    return [int(number) for number in whole]
