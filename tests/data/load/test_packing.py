"""The packing plan: nothing lost, nothing twice, never too long, no more packs than best-fit-decreasing."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_hydra.data.load import packing
from arctic_hydra.data.load.packing import WorkBudget, _pack, packs_lower_bound, plan_packs, plan_singles

FEW, MANY = 0, 10**9


@given(st.lists(st.integers(1, 97), max_size=300), st.integers(97, 400))
@settings(deadline=None, max_examples=200)
def test_packs_hold_each_example_once_and_never_too_much(lengths: list[int], capacity: int) -> None:
    array = np.array(lengths, dtype=np.int32)
    plan = plan_packs(array, capacity)
    assert sorted(plan.examples.tolist()) == list(range(len(lengths)))
    packs = [plan.pack(index) for index in range(len(plan))]
    assert all(0 < array[pack].sum() <= capacity for pack in packs)
    assert sum(len(pack) for pack in packs) == len(lengths)
    again = plan_packs(array, capacity)
    assert (again.examples == plan.examples).all() and (again.bounds == plan.bounds).all()


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """Return the packs that plain best-fit-decreasing opens: one item after another, kept open_bins sorted."""
    open_bins: list[int] = []
    opened = 0
    for length in sorted(lengths, reverse=True):
        place = bisect_left(open_bins, length)
        if place == len(open_bins):
            opened += 1
            insort(open_bins, capacity - length)
        else:
            insort(open_bins, open_bins.pop(place) - length)
    return opened


LENGTHS = st.one_of(
    *(st.lists(st.integers(least, 60), max_size=120) for least in (1, 20)),
    st.lists(st.sampled_from([13, 17, 21, 29, 34]), max_size=120),
)


@given(LENGTHS, st.integers(60, 150), st.integers(0, 200_000))
@settings(deadline=None, max_examples=200)
def test_never_more_packs_than_best_fit_decreasing(lengths: list[int], capacity: int, steps: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    plain = best_fit_decreasing(lengths, capacity)
    assert len(_pack(array, capacity, WorkBudget(FEW))) == plain, "the histogram form is best-fit-decreasing"
    assert packs_lower_bound(array, capacity) <= len(plan_packs(array, capacity)) <= plain
    assert packs_lower_bound(array, capacity) <= len(_pack(array, capacity, WorkBudget(steps)))


@given(st.lists(st.integers(20, 60), min_size=1, max_size=400), st.integers(60, 150), st.sampled_from([50_000, MANY]))
@settings(deadline=None, max_examples=100)
def test_filling_packs_exactly_loses_nothing(lengths: list[int], capacity: int, steps: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    plan = _pack(array, capacity, WorkBudget(steps))
    assert sorted(plan.examples.tolist()) == list(range(len(lengths)))
    assert all(0 < array[plan.pack(index)].sum() <= capacity for index in range(len(plan)))


@pytest.mark.parametrize(
    ("lengths", "capacity", "fewest"),
    [([6, 6, 6], 10, 3), ([5, 5, 5], 10, 2), ([7, 7, 4, 4], 10, 3), ([1] * 21, 10, 3), ([1, 1], 1, 2), ([], 10, 0)],
)
def test_the_lower_bound(lengths: list[int], capacity: int, fewest: int) -> None:
    assert packs_lower_bound(np.array(lengths, dtype=np.int64), capacity) == fewest


@pytest.mark.parametrize(
    ("least", "most", "count", "capacity"),
    [(1000, 4096, 6000, 4096), (8000, 65_536, 10_000, 65_536), (5000, 10_000, 20_000, 65_536)],
)
def test_long_examples_are_planned_with_bounded_work(
    least: int, most: int, count: int, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nearly every length is another one, no two packs are alike, and few packs can be filled exactly."""
    lengths = np.random.default_rng(0).integers(least, most + 1, count)
    work: list[int] = []
    look = packing._exactly

    def counted(left: Any, room: int, *others: Any) -> Any:
        work.append(room)
        assert len(work) <= count / 2, "looks at the lengths, each as long as a pack"
        return look(left, room, *others)

    monkeypatch.setattr(packing, "_exactly", counted)
    assert len(plan_packs(lengths, capacity)) <= best_fit_decreasing(lengths.tolist(), capacity)


def test_fill_of_many_examples() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 1, 50_000).astype(int), 1, 4096)
    plan = plan_packs(lengths, 4096)
    assert plan.fill > 0.999
    assert plan.tokens == lengths.sum()


def test_fill_without_short_examples() -> None:
    """Best-fit-decreasing alone leaves a gap in each pack that no example is short enough for."""
    lengths = np.random.default_rng(0).normal(210, 60, 200_000).clip(78, 591).astype(int)
    assert _pack(lengths, 4096, WorkBudget(FEW)).fill < 0.999 < plan_packs(lengths, 4096).fill


def test_too_long_and_empty_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="example 1 has 9 tokens, more than a pack of 8 holds"):
        plan_packs(np.array([3, 9]), 8)
    with pytest.raises(ValueError, match="example 0 has no tokens"):
        plan_packs(np.array([0, 9]), 9)
    assert len(plan_packs(np.array([], dtype=int), 8)) == 0


def test_singles_keep_order() -> None:
    plan = plan_singles(np.array([5, 2, 7]), 8)
    assert [plan.pack(index).tolist() for index in range(3)] == [[0], [1], [2]]
