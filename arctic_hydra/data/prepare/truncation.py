"""Policies for rows that are malformed or too long: drop, truncate at an end, or split, between turns where possible."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import Enum
from math import log2


class Malformed(Enum):
    """How to handle a row that is not a valid example."""

    error = "error"
    drop = "drop"


class Overlong(Enum):
    """How to handle an example longer than `max_length`."""

    drop = "drop"
    keep_start = "keep_start"
    keep_end = "keep_end"
    split = "split"
    error = "error"


def truncating(divisible: bool) -> str:
    """Return the values of `data.overlong` that keep a part of an example, for messages; answers are not `divisible`."""
    return "keep_start, keep_end or split" if divisible else "keep_start or keep_end"


_BINS_PER_DOUBLING = 4


def length_bin(length: int) -> int:
    """Return the bin of a length in a logarithmic histogram with four bins per doubling."""
    return int(_BINS_PER_DOUBLING * log2(length) + 1e-9)


def bin_edge(number: int) -> float:
    """Return the lower edge of a bin of that histogram, in tokens."""
    return float(2 ** (number / _BINS_PER_DOUBLING))


def kept_spans(
    length: int, limit: int, policy: Overlong, turn_ends: Sequence[int], repeated: int = 0
) -> list[tuple[int, int]]:
    """Return the spans [start, stop) of an example of `length` > `limit` tokens that are kept, each at most `limit` long.

    Boundaries fall on `turn_ends` (ascending ends of answers) if one of them leaves anything to keep, else anywhere.
    Spans that do not start at 0 leave room for `repeated` tokens, the BOS that will be prepended to them.
    """
    if policy is Overlong.keep_start:
        return [(0, _last_end(turn_ends, 0, limit))]
    if policy is Overlong.keep_end:
        earliest = length - (limit - repeated)
        before_last = turn_ends[:-1]  # what follows the last answer is not a turn
        index = bisect_left(before_last, earliest)
        return [(before_last[index] if index < len(before_last) else earliest, length)]
    assert policy is Overlong.split, f"{policy} keeps nothing"
    parts, start = [], 0
    while length - start > limit - (repeated if start else 0):
        stop = _last_end(turn_ends, start, start + limit - (repeated if start else 0))
        parts.append((start, stop))
        start = stop
    return [*parts, (start, length)]


def _last_end(turn_ends: Sequence[int], start: int, latest: int) -> int:
    """Return the last turn end after `start` and up to `latest`; `latest` if there is none."""
    index = bisect_right(turn_ends, latest) - 1
    return turn_ends[index] if index >= 0 and turn_ends[index] > start else latest
