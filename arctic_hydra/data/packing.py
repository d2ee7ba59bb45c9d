"""Which examples share a pack: global best-fit-decreasing, done on the histogram of lengths.

Best-fit-decreasing (Johnson, 1973) puts each item, longest first, into the fullest bin that still takes it. Items of
one length are alike, and so are bins with the same room left: both are moved in groups, so the cost depends on the
number of distinct lengths rather than on the number of examples.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Plan:
    """Packs of examples: pack p holds `examples[bounds[p]:bounds[p + 1]]`."""

    examples: Ints
    bounds: Ints
    tokens: int
    """Tokens of all examples."""
    capacity: int
    """Most tokens that one pack may hold."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def pack(self, index: int) -> Ints:
        """Return the examples of one pack."""
        return self.examples[self.bounds[index] : self.bounds[index + 1]]

    @property
    def fill(self) -> float:
        """Share of the packs' room that tokens take."""
        return self.tokens / (len(self) * self.capacity) if len(self) else 0.0


def plan_packs(lengths: np.ndarray[Any, Any], capacity: int) -> Plan:
    """Return packs of at most `capacity` tokens that hold each example exactly once; deterministic.

    Raises ValueError when an example is longer than a pack.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and int(lengths.max()) > capacity:
        worst = int(lengths.argmax())
        raise ValueError(f"example {worst} has {int(lengths[worst])} tokens, more than a pack of {capacity} holds")
    if len(lengths) and int(lengths.min()) < 1:
        raise ValueError(f"example {int(lengths.argmin())} has no tokens")
    longest_first = np.argsort(-lengths, kind="stable")
    sizes, starts, counts = _histogram(lengths[longest_first])
    bins = np.empty(len(lengths), dtype=np.int64)
    rooms = _Rooms()
    for size, start, count in zip(sizes, starts, counts, strict=True):
        placed = 0
        while placed < count:
            room, ids = rooms.tightest(size) or (capacity, rooms.open(-(-(count - placed) // (capacity // size))))
            placed += _fill(rooms, room, ids, size, bins[start + placed : start + count])
    # Within a pack: longest first, in the order of placing.
    by_bin = np.argsort(bins, kind="stable")
    bounds = np.searchsorted(bins[by_bin], np.arange(rooms.opened + 1))
    return Plan(longest_first[by_bin], bounds.astype(np.int64), int(lengths.sum()), capacity)


def plan_singles(lengths: np.ndarray[Any, Any], capacity: int) -> Plan:
    """Return one pack for each example, in order."""
    count = len(lengths)
    return Plan(np.arange(count, dtype=np.int64), np.arange(count + 1, dtype=np.int64), int(np.sum(lengths)), capacity)


def epoch_order(count: int, seed: int, epoch: int) -> Ints:
    """Return the order of `count` packs in an epoch: the same for any number of ranks, another in each epoch."""
    # Raw bit generator output is stable over NumPy versions; Generator methods are not promised to be.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


class _Rooms:
    """Bins grouped by the room they have left."""

    def __init__(self) -> None:
        self._groups: dict[int, list[Ints]] = {}
        self._sorted: list[int] = []
        self.opened = 0

    def open(self, count: int) -> Ints:
        """Return the ids of `count` new bins."""
        self.opened += count
        return np.arange(self.opened - count, self.opened, dtype=np.int64)

    def tightest(self, size: int) -> tuple[int, Ints] | None:
        """Take out a group of bins with the least room that is at least `size`."""
        place = bisect_left(self._sorted, size)
        if place == len(self._sorted):
            return None
        room = self._sorted[place]
        groups = self._groups[room]
        ids = groups.pop()
        if not groups:
            del self._groups[room]
            del self._sorted[place]
        return room, ids

    def put(self, room: int, ids: Ints) -> None:
        """Add bins that have `room` left."""
        if room == 0 or len(ids) == 0:
            return
        if room not in self._groups:
            self._groups[room] = []
            insort(self._sorted, room)
        self._groups[room].append(ids)


def _fill(rooms: _Rooms, room: int, ids: Ints, size: int, target: Ints) -> int:
    """Put items of one size into alike bins, each filled before the next; return how many found a place."""
    each = room // size
    count = min(len(target), each * len(ids))
    whole, rest = divmod(count, each)
    target[: whole * each] = np.repeat(ids[:whole], each)
    rooms.put(room - each * size, ids[:whole])
    used = whole
    if rest:
        target[whole * each : count] = ids[whole]
        rooms.put(room - rest * size, ids[whole : whole + 1])
        used += 1
    rooms.put(room, ids[used:])
    return count


def _histogram(descending: Ints) -> tuple[list[int], list[int], list[int]]:
    """Return each distinct length, where its run starts and how long the run is."""
    if len(descending) == 0:
        return [], [], []
    starts = np.concatenate([[0], np.flatnonzero(np.diff(descending)) + 1])
    counts = np.diff(np.concatenate([starts, [len(descending)]]))
    return descending[starts].tolist(), starts.tolist(), counts.tolist()
