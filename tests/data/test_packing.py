"""The packing plan: nothing lost, nothing twice, never too long, and the same global batches however they are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_hydra.data.packing import _pack, epoch_order, plan_packs, plan_singles


@given(st.lists(st.integers(1, 97), max_size=300), st.integers(97, 400))
@settings(deadline=None, max_examples=200)
def test_pitfall_06_packs_hold_each_example_once_and_never_too_much(lengths: list[int], capacity: int) -> None:
    array = np.array(lengths, dtype=np.int32)
    plan = plan_packs(array, capacity)
    assert sorted(plan.examples.tolist()) == list(range(len(lengths)))
    packs = [plan.pack(index) for index in range(len(plan))]
    assert all(0 < array[pack].sum() <= capacity for pack in packs)
    assert sum(len(pack) for pack in packs) == len(lengths)
    again = plan_packs(array, capacity)
    assert (again.examples == plan.examples).all() and (again.bounds == plan.bounds).all()


@given(st.lists(st.integers(1, 60), max_size=120), st.integers(60, 150))
@settings(deadline=None, max_examples=100)
def test_the_histogram_form_opens_as_many_packs_as_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    array = np.array(lengths, dtype=np.int64)
    assert len(_pack(array, capacity, exact_first=False)) == len(rooms) >= len(plan_packs(array, capacity))


@given(st.lists(st.integers(20, 60), min_size=1, max_size=400), st.integers(60, 150))
@settings(deadline=None, max_examples=100)
def test_filling_to_the_brim_first_loses_nothing(lengths: list[int], capacity: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    plan = _pack(array, capacity, exact_first=True)
    assert sorted(plan.examples.tolist()) == list(range(len(lengths)))
    assert all(0 < array[plan.pack(index)].sum() <= capacity for index in range(len(plan)))


def test_fill_of_many_examples() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 1, 50_000).astype(int), 1, 4096)
    plan = plan_packs(lengths, 4096)
    assert plan.fill > 0.999
    assert plan.tokens == lengths.sum()


def test_fill_without_short_examples() -> None:
    """Best-fit-decreasing alone leaves a gap in each pack that no example is short enough for."""
    lengths = np.random.default_rng(0).normal(210, 60, 200_000).clip(78, 591).astype(int)
    assert _pack(lengths, 4096, exact_first=False).fill < 0.999 < plan_packs(lengths, 4096).fill


def test_too_long_and_empty_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="example 1 has 9 tokens, more than a pack of 8 holds"):
        plan_packs(np.array([3, 9]), 8)
    with pytest.raises(ValueError, match="example 0 has no tokens"):
        plan_packs(np.array([0, 9]), 9)
    assert len(plan_packs(np.array([], dtype=int), 8)) == 0


def test_singles_keep_order() -> None:
    plan = plan_singles(np.array([5, 2, 7]), 8)
    assert [plan.pack(index).tolist() for index in range(3)] == [[0], [1], [2]]


def test_pitfall_15_b6_w7_another_order_each_epoch_the_same_for_a_seed() -> None:
    first, second, other = epoch_order(100, 1, 0), epoch_order(100, 1, 1), epoch_order(100, 2, 0)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first.tolist() != second.tolist() != other.tolist()
    assert first.tolist() == epoch_order(100, 1, 0).tolist()
    assert epoch_order(8, 42, 0).tolist() == GOLDEN, "the order is part of what a resumed run relies on"


GOLDEN = [4, 1, 3, 6, 0, 7, 2, 5]
