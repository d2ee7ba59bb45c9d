"""Which examples share a pack: global best-fit-decreasing on the histogram of lengths.

Best-fit-decreasing (Johnson, 1973) puts each item, longest first, into the fullest bin that still has room for it. Items of
equal length are interchangeable, and so are bins with equal remaining room. Both are processed in groups, so the cost
depends on the number of distinct lengths rather than on the number of examples.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import Any

import numpy as np

from arctic_hydra.data.arrays import Ints

GOOD_ENOUGH = 0.999
"""Ratio of the lower bound to the number of packs from which on no better plan is searched."""
STEPS_PER_LOOKUP = 2_000
"""Fixed cost of one lookup, in steps; a step takes as long as visiting one length, a few ns."""
STEPS_PER_EXAMPLE = 1_000
"""Steps per example for filling packs exactly: a fraction of the time of best-fit-decreasing."""
MAX_STEPS = 40_000_000
"""Maximum steps for filling packs exactly, about 0.2 s; the remaining examples are packed by best-fit-decreasing."""


@dataclass(frozen=True)
class Plan:
    """Packs of examples: pack p holds `examples[bounds[p]:bounds[p + 1]]`."""

    examples: Ints
    bounds: Ints
    tokens: int
    """Tokens of all examples."""
    capacity: int
    """Maximum tokens per pack."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def pack(self, index: int) -> Ints:
        """Return the examples of one pack."""
        return self.examples[self.bounds[index] : self.bounds[index + 1]]

    @property
    def fill(self) -> float:
        """Share of the packs' capacity that is filled with tokens."""
        return self.tokens / (len(self) * self.capacity) if len(self) else 0.0


def plan_packs(lengths: np.ndarray[Any, Any], capacity: int) -> Plan:
    """Return packs of at most `capacity` tokens with each example exactly once, at most as many as best-fit-decreasing needs.

    Deterministic; the work for n examples is bounded by n log n plus a constant.

    Raises ValueError when an example is longer than a pack.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and int(lengths.max()) > capacity:
        worst = int(lengths.argmax())
        raise ValueError(f"example {worst} has {int(lengths[worst])} tokens, more than a pack of {capacity} holds")
    if len(lengths) and int(lengths.min()) < 1:
        raise ValueError(f"example {int(lengths.argmin())} has no tokens")
    plan = _pack(lengths, capacity, WorkBudget(0))
    if packs_lower_bound(lengths, capacity) < GOOD_ENOUGH * len(plan):
        # Best-fit leaves gaps that no example is short enough for, so search for combinations that leave none.
        other = _pack(lengths, capacity, WorkBudget(min(STEPS_PER_EXAMPLE * len(lengths), MAX_STEPS)))
        plan = other if len(other) < len(plan) else plan
    return plan


def packs_lower_bound(lengths: Ints, capacity: int) -> int:
    """Return a lower bound of the number of packs: the bound L2 of Martello and Toth (1990).

    For a length k: each example above capacity - k needs a pack that has no room for one of k or more. Each example above
    half a pack needs a separate pack, too. The other examples from k on fill the room that these leave, then further packs.
    """
    counts = np.bincount(lengths, minlength=capacity + 1)
    number, tokens = np.cumsum(counts), np.cumsum(counts * np.arange(capacity + 1))
    half = capacity // 2
    shortest = np.arange(1, half + 1)
    rest = capacity - shortest
    long, long_tokens = number[rest] - number[half], tokens[rest] - tokens[half]
    without_room = tokens[half] - tokens[shortest - 1] - (long * capacity - long_tokens)
    own = np.maximum(-(-without_room // capacity), 0)
    return max(int((number[-1] - number[half] + own).max(initial=0)), -(-int(tokens[-1]) // capacity))


class WorkBudget:
    """A budget counted in steps, not in time, so that every machine computes the same plan."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> bool:
        """Spend steps; return False if fewer were left."""
        enough = self.left >= count
        self.left = max(self.left - count, 0)
        return enough


def _pack(lengths: Ints, capacity: int, budget: WorkBudget) -> Plan:
    """Return the best-fit-decreasing plan of what remains after filling packs exactly within the budget."""
    longest_first = np.argsort(-lengths, kind="stable")
    sizes, starts, counts = _histogram(lengths[longest_first])
    bins = np.empty(len(lengths), dtype=np.int64)
    open_bins = _OpenBins()
    done = _fill_exactly(open_bins, capacity, sizes, starts, counts, bins, budget)
    for size, start, count, placed in zip(sizes, starts, counts, done, strict=True):
        while placed < count:
            room, ids = open_bins.tightest(size) or (
                capacity,
                open_bins.open(-(-(count - placed) // (capacity // size))),
            )
            placed += _fill(open_bins, room, ids, size, bins[start + placed : start + count])
    # Within a pack: longest first, in the order of placement.
    by_bin = np.argsort(bins, kind="stable")
    bounds = np.searchsorted(bins[by_bin], np.arange(open_bins.opened + 1))
    return Plan(longest_first[by_bin], bounds.astype(np.int64), int(lengths.sum()), capacity)


def plan_singles(lengths: np.ndarray[Any, Any], capacity: int) -> Plan:
    """Return one pack for each example, in order."""
    count = len(lengths)
    return Plan(np.arange(count, dtype=np.int64), np.arange(count + 1, dtype=np.int64), int(np.sum(lengths)), capacity)


class _OpenBins:
    """Open bins, grouped by their remaining room."""

    def __init__(self) -> None:
        self._groups: dict[int, list[Ints]] = {}
        self._sorted: list[int] = []
        self.opened = 0

    def open(self, count: int) -> Ints:
        """Return the ids of `count` new bins."""
        self.opened += count
        return np.arange(self.opened - count, self.opened, dtype=np.int64)

    def tightest(self, size: int) -> tuple[int, Ints] | None:
        """Remove and return a group of bins with the least room that is at least `size`."""
        index = bisect_left(self._sorted, size)
        if index == len(self._sorted):
            return None
        room = self._sorted[index]
        groups = self._groups[room]
        ids = groups.pop()
        if not groups:
            del self._groups[room]
            del self._sorted[index]
        return room, ids

    def put(self, room: int, ids: Ints) -> None:
        """Add bins with `room` remaining."""
        if room == 0 or len(ids) == 0:
            return
        if room not in self._groups:
            self._groups[room] = []
            insort(self._sorted, room)
        self._groups[room].append(ids)


def _fill(open_bins: _OpenBins, room: int, ids: Ints, size: int, target: Ints) -> int:
    """Put items of one size into bins of equal room, filling each before the next; return how many were placed."""
    each = room // size
    count = min(len(target), each * len(ids))
    whole, rest = divmod(count, each)
    target[: whole * each] = np.repeat(ids[:whole], each)
    open_bins.put(room - each * size, ids[:whole])
    used = whole
    if rest:
        target[whole * each : count] = ids[whole]
        open_bins.put(room - rest * size, ids[whole : whole + 1])
        used += 1
    open_bins.put(room, ids[used:])
    return count


def _histogram(descending: Ints) -> tuple[list[int], list[int], list[int]]:
    """Return each distinct length with the start and the length of its run."""
    if len(descending) == 0:
        return [], [], []
    starts = np.concatenate([[0], np.flatnonzero(np.diff(descending)) + 1])
    counts = np.diff(np.concatenate([starts, [len(descending)]]))
    return descending[starts].tolist(), starts.tolist(), counts.tolist()


def _fill_exactly(
    open_bins: _OpenBins,
    capacity: int,
    sizes: list[int],
    starts: list[int],
    counts: list[int],
    bins: Ints,
    budget: WorkBudget,
) -> list[int]:
    """Fill bins exactly, all equal bins in one step, within the budget; return how many items of each size were placed.

    A pattern takes the longest sizes first and ends in one or two sizes that fit exactly.
    """
    left = np.zeros(capacity + 1, dtype=np.int64)
    left[sizes] = counts
    start_of, count_of = dict(zip(sizes, starts, strict=True)), dict(zip(sizes, counts, strict=True))
    remaining = sizes[::-1]
    for size in sizes:  # longest first
        while left[size] and (pattern := _pattern(left, capacity, remaining, size, budget)):
            times = min(int(left[one]) // number for one, number in pattern.items())
            ids = open_bins.open(times)
            for one, number in pattern.items():
                first = start_of[one] + count_of[one] - int(left[one])
                bins[first : first + times * number] = np.repeat(ids, number)
                left[one] -= times * number
                if not left[one]:
                    del remaining[bisect_left(remaining, one)]
        if not budget.left or not remaining:
            break
    return [count - int(left[size]) for size, count in zip(sizes, counts, strict=True)]


def _pattern(left: Ints, capacity: int, remaining: list[int], first: int, budget: WorkBudget) -> dict[int, int] | None:
    """Return a count per size that sums to exactly `capacity` and includes `first`.

    `remaining` are the sizes of the remaining items, shortest first. None if nothing is found within the budget.
    """
    pattern: dict[int, int] = {}
    room, index = capacity, bisect_left(remaining, first)
    while index >= 0 and budget.left:
        size = remaining[index]
        most = min(int(left[size]), room // size)
        for number in range(most, max(most - 3, 1) - 1, -1):
            found = pattern | {size: number}
            rest = _exactly(left, room - number * size, remaining, found, budget)
            if rest is not None:
                for last in rest:
                    found[last] = found.get(last, 0) + 1
                return found
        pattern[size] = most
        room -= most * size
        index = min(index, bisect_right(remaining, room)) - 1
    return None


def _exactly(
    left: Ints, room: int, remaining: list[int], taken: dict[int, int], budget: WorkBudget
) -> list[int] | None:
    """Return up to two of the remaining sizes that sum to `room`, preferring the most frequent; None if there are none."""
    least, half = max(remaining[0], room - remaining[-1]), room // 2  # the shorter of two is from `least` to `half`
    if not budget.take(STEPS_PER_LOOKUP + max(half - least, 0)):
        return None
    if room == 0:
        return []
    if left[room] > taken.get(room, 0):
        return [room]
    if least > half:
        return None
    pairs = np.minimum(left[least : half + 1], left[room - half : room - least + 1][::-1])
    for size in taken:
        shorter = min(size, room - size)
        if shorter >= least:
            pairs[shorter - least] = min(left[one] - taken.get(one, 0) for one in (shorter, room - shorter))
    if room == 2 * half:
        pairs[-1] //= 2
    best = int(pairs.argmax())
    return [least + best, room - least - best] if pairs[best] > 0 else None
