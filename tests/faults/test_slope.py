"""The trend of a figure is found through noise and outliers, and nothing else is taken for one."""

from __future__ import annotations

import random

import pytest

from tests.faults.slope import Point, at_equal_age, slope, span, within_a_start


def series(per_minute: float, noise: float, outliers: int = 0, age_effect: float = 0.0) -> list[Point]:
    """Return a sample every 6 seconds over 30 minutes, in starts of a minute in which the figure also grows with the age."""
    draw = random.Random(0)
    points = []
    for number in range(300):
        minute, age = number / 10, number % 10 / 10
        value = 100 + per_minute * minute + age_effect * age + draw.gauss(0, noise)
        points.append(Point(minute, value + (500 if number in range(0, 7 * outliers, 7) else 0), number // 10, age))
    return points


@pytest.mark.parametrize("per_minute", [1.0, 0.2, -0.5, 0.0])
@pytest.mark.parametrize("outliers", [0, 12])
def test_a_trend_is_found_through_noise_and_outliers(per_minute, outliers):
    assert slope(series(per_minute, noise=3.0, outliers=outliers)) == pytest.approx(per_minute, abs=0.06)


def test_one_more_file_every_five_minutes_is_a_trend():
    points = [Point(number / 10, 20 + number // 50) for number in range(300)]
    assert slope(points) > 0.15
    assert slope([Point(point.minute, 20 + (point.minute > 29)) for point in points]) == 0


def test_memory_that_grows_in_each_start_is_no_trend_at_equal_ages():
    flat, growing = series(0.0, 0.5, age_effect=40), series(0.3, 0.5, age_effect=40)
    assert slope(flat, at_equal_age(0.05)) == pytest.approx(0.0, abs=0.02)
    assert slope(growing, at_equal_age(0.05)) == pytest.approx(0.3, abs=0.02)
    assert slope(flat, within_a_start(0.2)) == pytest.approx(40, abs=2)


def test_the_span_is_that_of_comparable_points():
    points = series(0.0, 0.1)
    assert span(points) == pytest.approx(29.9) and span([]) == 0
    assert span(points, within_a_start(0.2)) == pytest.approx(0.7)


def test_no_trend_without_comparable_points():
    assert slope([]) == slope([Point(1, 5)]) == slope([Point(1, 5), Point(1, 9)]) == 0
    assert slope(series(1.0, 0.1), within_a_start(5)) == 0
