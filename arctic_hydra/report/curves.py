"""Curves over the steps of a run, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from arctic_hydra.human_numbers import format_count
from arctic_hydra.report import html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from arctic_hydra.report.drawing import Drawing

MOST_POINTS = 1000
"""Maximum points per curve; more would not be visible and would slow the page down."""

Lines = list[dict[str, Any]]
"""Rows of a `metrics.jsonl`."""


def with_evaluation(title: str, key: str, steps: Lines, evaluations: Lines) -> Drawing:
    """Return a figure of a metric of the training, and of `eval/<key>` of the evaluations."""
    figure, axes = _over_steps(title)
    places, values = _series(steps, key)
    _draw(axes, places, values, smooth=True, label="training")
    at, evaluated = _series(evaluations, f"eval/{key}")
    if at:
        axes.plot(at, evaluated, marker="o", markersize=4, linewidth=1.2, color=html.COLORS[1], label="evaluation")
        axes.legend(frameon=False, fontsize=9)
    return figure


def rewards(steps: Lines, evaluations: Lines) -> Drawing:
    """Return a figure of the mean rewards of the chosen and of the rejected answers."""
    figure, axes = _over_steps("rewards")
    for color, side in zip(html.COLORS, ("chosen", "rejected"), strict=False):
        axes.plot(*_series(steps, f"rewards/{side}"), linewidth=1.4, color=color, label=side)
        at, evaluated = _series(evaluations, f"eval/rewards/{side}")
        if at:
            name = f"{side}, evaluation"
            axes.plot(at, evaluated, marker="o", markersize=4, linewidth=1.2, linestyle=":", color=color, label=name)
    axes.legend(frameon=False, fontsize=9)
    return figure


def alone(
    title: str, steps: Lines, key: str, *, logarithmic: bool = False, smooth: bool = False, from_zero: bool = False
) -> Drawing:
    """Return a figure of one metric."""
    figure, axes = _over_steps(title)
    places, values = _series(steps, key)
    _draw(axes, places, values, smooth=smooth)
    positive = [value for value in values if value > 0]
    if logarithmic and positive and max(positive) > 3 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    elif from_zero:
        axes.set_ylim(bottom=0)
    if not logarithmic:
        axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
    return figure


def _draw(axes: Axes, places: list[float], values: list[float], smooth: bool, label: str | None = None) -> None:
    """Draw a curve; with `smooth` and many points, draw it lightly, with its running median on top."""
    if not smooth or len(values) < 30:
        axes.plot(places, values, color=html.COLORS[0], linewidth=1.6, label=label)
        return
    axes.plot(places, values, color=html.COLORS[0], linewidth=0.8, alpha=0.3)
    axes.plot(places, _running_median(values, len(values) // 25), color=html.COLORS[0], linewidth=1.8, label=label)


def _series(lines: Lines, key: str) -> tuple[list[float], list[float]]:
    """Return the steps and values of a metric, skipping missing values; average neighbors if there are too many points."""
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    width = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), max(1, width))]
    return (
        [sum(step for step, _ in group) / len(group) for group in groups],
        [sum(value for _, value in group) / len(group) for group in groups],
    )


def _running_median(values: Sequence[float], reach: int) -> list[float]:
    """Return the running median over windows of `reach` values on each side, which hides single spikes."""
    return [median(values[max(0, place - reach) : place + reach + 1]) for place in range(len(values))]


def _over_steps(title: str) -> tuple[Drawing, Axes]:
    figure, axes = html.plot(title, "step")
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    return figure, axes
