"""The rows of streamed sources in order: shards drawn anew in each pass, and how many rows of each source come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arctic_hydra.data.load.order import epoch_order
from arctic_hydra.data.rows.base import Rows
from arctic_hydra.data.rows.shard import START, ByteOffset, Shard
from arctic_hydra.errors import DataError

PIECE_ROWS = 250
"""Rows that are tokenised together, by one worker."""


@dataclass(frozen=True)
class Cursor:
    """Where a stream stands in one source."""

    passes: int = 0
    """Passes over the source that are complete."""
    shard: int = 0
    """Shards of this pass that are complete."""
    place: ByteOffset = START
    """Where the next row of the current shard is."""
    rows_in_pass: int = 0

    def plain(self) -> dict[str, Any]:
        """Return the cursor as plain values."""
        return {**vars(self), "place": list(self.place)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Cursor:
        """Return the cursor that `plain()` made these values of."""
        return cls(**{**plain, "place": ByteOffset(*plain["place"])})


class SourceStream:
    """The shards of one source in the order of each pass: the same for a seed, whoever reads them."""

    def __init__(self, key: str, shards: Sequence[Shard], seed: int) -> None:
        self.key = key
        self._shards, self._seed = shards, seed

    def read(self, cursor: Cursor, count: int) -> tuple[list[Rows], Cursor]:
        """Return up to `count` rows from the cursor on in pieces, and the cursor behind them.

        Fewer come where a pass ends: the next call begins the next one. Raises DataError when a whole pass has no row.
        """
        pieces: list[Rows] = []
        order = epoch_order(len(self._shards), self._seed, cursor.passes)
        while count:
            shard = self._shards[order[cursor.shard]]
            try:
                rows, place, ended = shard.read(cursor.place, min(count, PIECE_ROWS))
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
                raise DataError(f"{self.key}: holds no row; expected at least one")
            else:
                return pieces, Cursor(cursor.passes + 1)
        return pieces, cursor


def next_rows(weights: Sequence[float], rows: Sequence[int], sizes: Sequence[int], count: int) -> list[int]:
    """Return how many of the next `count` rows come from each source, so that its share of all sizes is its weight.

    `rows` and `sizes` are what came from each so far, sizes in the unit of the weights (examples or tokens). What a source
    has too much or too little of is made up for.
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
    # The largest remainders get what rounding left over.
    for index in np.argsort(whole - exact, kind="stable")[: count - int(whole.sum())]:
        whole[index] += 1
    return [int(number) for number in whole]
