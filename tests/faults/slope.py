"""Trends of figures that were sampled over time, insensitive to outliers: the median of the slopes of all pairs (Theil-Sen)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Point:
    """A figure at one moment."""

    minute: float
    """Since the beginning of all samples."""
    value: float
    start: int = 0
    """Which start of the run it was measured in."""
    age: float = 0.0
    """Minutes since this start began to train."""


def slope(points: Sequence[Point], comparable: Callable[[Point, Point], bool] = lambda one, other: True) -> float:
    """Return the growth per minute, from the pairs that are comparable; 0 if there are none."""
    pairs = [(one, other) for one, other in combinations(points, 2) if one.minute != other.minute]
    slopes = [(b.value - a.value) / (b.minute - a.minute) for a, b in pairs if comparable(a, b)]
    return statistics.median(slopes) if slopes else 0.0


def span(points: Sequence[Point], comparable: Callable[[Point, Point], bool] = lambda one, other: True) -> float:
    """Return the minutes between the two comparable points that are farthest apart; 0 if there are none."""
    return max((abs(b.minute - a.minute) for a, b in combinations(points, 2) if comparable(a, b)), default=0.0)


def at_equal_age(tolerance: float) -> Callable[[Point, Point], bool]:
    """Return whether two points belong to different starts that had trained for equally long, within `tolerance` minutes.

    A process grows while it warms up, so that only those of the same age tell whether later starts need more.
    """
    return lambda one, other: one.start != other.start and abs(one.age - other.age) <= tolerance


def within_a_start(warm_up: float) -> Callable[[Point, Point], bool]:
    """Return whether two points belong to the same start and were measured after `warm_up` minutes of training."""
    return lambda one, other: one.start == other.start and min(one.age, other.age) >= warm_up
