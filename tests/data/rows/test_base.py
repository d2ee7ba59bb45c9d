"""Sequences of rows: joined, sliced and sampled, each row with its location."""

from __future__ import annotations

import pytest

from arctic_hydra.data.rows.base import JoinedRows, ListRows, Rows, sample_rows, slice_rows


def numbered(start: int, stop: int, origin: str) -> ListRows:
    return ListRows([{"n": n} for n in range(start, stop)], origin)


def values(rows: Rows) -> list[int]:
    return [row["n"] for row in rows.take(range(len(rows)))]


def test_joined_rows_are_taken_in_any_order_and_name_their_file() -> None:
    rows = JoinedRows([numbered(0, 2, "a"), numbered(2, 2, "b"), numbered(2, 5, "c")])
    assert len(rows) == 5 and [row["n"] for row in rows.take([4, 0, 1, 3, 2])] == [4, 0, 1, 3, 2]
    assert [rows.where(index) for index in (1, 2)] == ["a, row 1", "c, row 0"]
    assert rows.columns() == ["n"] and ListRows([]).columns() == []


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [("", "", range(10)), ("10%", "30%", range(1, 3)), ("-2", "", range(8, 10)), ("2", "-5", range(2, 5))],
)
def test_slices_take_numbers_and_percents(start: str, stop: str, expected: range) -> None:
    rows = slice_rows(numbered(0, 10, "a"), start, stop)
    assert values(rows) == list(expected) and rows.where(0) == f"a, row {expected[0]}"


def test_samples_keep_the_order_and_follow_the_seed() -> None:
    rows = numbered(0, 100, "a")
    drawn = [values(sample_rows(rows, None, 10, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] == sorted(drawn[0]) and drawn[0] != drawn[2]
    assert len(sample_rows(rows, 0.25, None, 1)) == 25
    assert sample_rows(rows, None, 200, 1) is rows and sample_rows(rows, None, None, 1) is rows
