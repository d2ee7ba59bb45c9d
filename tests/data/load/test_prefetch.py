"""Prefetching: the same items in order, at most `depth` ahead, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from arctic_hydra.data.load.prefetch import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("arctic_hydra-loader")]


def numbers(count: int, made: list[int], closed: list[bool]) -> Generator[int, None, None]:
    try:
        for number in range(count):
            made.append(number)
            yield number
    finally:
        closed.append(True)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_keep_their_order_and_the_thread_ends(depth: int) -> None:
    made: list[int] = []
    closed: list[bool] = []
    assert list(prefetch(numbers(9, made, closed), depth)) == made == list(range(9))
    assert closed == [True] and threads() == []


def test_no_more_than_depth_items_are_made_ahead_and_leaving_closes_the_source() -> None:
    made: list[int] = []
    closed: list[bool] = []
    items = prefetch(numbers(99, made, closed), 2)
    assert next(items) == 0
    deadline = time.monotonic() + 30
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(made) == 3, "the item in use and two ahead"
    items.close()
    assert closed == [True] and threads() == []


def test_an_error_is_raised_in_its_place() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise ValueError("row 2")

    items = prefetch(failing(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="row 2"):
        next(items)
    assert threads() == []
