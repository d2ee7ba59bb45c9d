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


GOOD_FILL = 0.999
MOST_PATTERNS = 4000
"""Bounds the time of filling bins exactly; what is left then is packed best-fit."""


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
    plan = _pack(lengths, capacity, exact_first=False)
    fewest = -(-plan.tokens // capacity)
    if (
        plan.fill < GOOD_FILL and len(plan) > fewest
    ):  # no short examples to fill the gaps that best-fit leaves: choose what leaves none
        other = _pack(lengths, capacity, exact_first=True)
        plan = other if len(other) < len(plan) else plan
    return plan


def _pack(lengths: Ints, capacity: int, exact_first: bool) -> Plan:
    longest_first = np.argsort(-lengths, kind="stable")
    sizes, starts, counts = _histogram(lengths[longest_first])
    bins = np.empty(len(lengths), dtype=np.int64)
    rooms = _Rooms()
    done = _fill_exactly(rooms, capacity, sizes, starts, counts, bins) if exact_first else [0] * len(sizes)
    for size, start, count, placed in zip(sizes, starts, counts, done, strict=True):
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


def _fill_exactly(
    rooms: _Rooms, capacity: int, sizes: list[int], starts: list[int], counts: list[int], bins: Ints
) -> list[int]:
    """Fill bins to the brim, alike ones at once, as long as that can be done; return how many of each size are placed.

    A pattern takes the longest sizes first and ends in one or two sizes that fit exactly.
    """
    left = np.zeros(capacity + 1, dtype=np.int64)
    left[sizes] = counts
    start_of, count_of = dict(zip(sizes, starts, strict=True)), dict(zip(sizes, counts, strict=True))
    waiting = list(sizes)  # longest first
    for _ in range(MOST_PATTERNS):
        while waiting and left[waiting[0]] == 0:
            waiting.pop(0)
        if not waiting:
            break
        pattern = _pattern(left, capacity, waiting)
        if pattern is None:
            waiting.pop(0)
            continue
        times = min(int(left[size]) // number for size, number in pattern.items())
        ids = rooms.open(times)
        for size, number in pattern.items():
            first = start_of[size] + count_of[size] - int(left[size])
            bins[first : first + times * number] = np.repeat(ids, number)
            left[size] -= times * number
    return [count - int(left[size]) for size, count in zip(sizes, counts, strict=True)]


def _pattern(left: Ints, capacity: int, waiting: list[int]) -> dict[int, int] | None:
    """Return sizes and how many of each, the first of `waiting` among them, that make up exactly `capacity`."""
    pattern: dict[int, int] = {}
    room = capacity
    for size in waiting:
        most = min(int(left[size]), room // size)
        for number in range(most, max(most - 3, 0 if pattern else 1) - 1, -1):
            rest = _exactly(left, room - number * size, {**pattern, size: number})
            if rest is not None:
                found = {**pattern, size: number}
                for last in rest:
                    found[last] = found.get(last, 0) + 1
                return {key: value for key, value in found.items() if value}
        if most:
            pattern[size] = most
            room -= most * size
    return None


def _exactly(left: Ints, room: int, taken: dict[int, int]) -> list[int] | None:
    """Return none, one or two sizes that sum to `room` and are still there, the most plentiful ones; None if none do."""
    if room == 0:
        return []
    if left[room] > taken.get(room, 0):
        return [room]
    there = left[:room].copy()
    for size, number in taken.items():
        if size < room:
            there[size] -= number
    pairs = np.minimum(there[1:], there[1:][::-1])  # counts of a and of room - a, for a = 1 .. room - 1
    if room % 2 == 0 and len(pairs):
        pairs[room // 2 - 1] //= 2
    if not len(pairs) or pairs.max() <= 0:
        return None
    first = int(pairs.argmax()) + 1
    return [first, room - first]
