"""Curves: what is drawn of which lines."""

from __future__ import annotations

from arctic_hydra.report import curves

STEPS = [{"step": step, "loss": 4.0 / step, "lr": 1e-3, "gap": None} for step in range(1, 5001)]
EVALUATIONS = [{"step": 10, "eval/loss": 2.0}, {"step": 20, "eval/loss": None}]


def test_training_and_evaluation_share_their_axes() -> None:
    [axes] = curves.with_evaluation("the loss", "loss", STEPS[:20], EVALUATIONS).axes
    assert axes.get_title("left") == "the loss" and [line.get_label() for line in axes.lines] == [
        "training",
        "evaluation",
    ]
    assert list(axes.lines[1].get_xdata()) == [10] and list(axes.lines[0].get_ydata())[:2] == [4.0, 2.0]


def test_many_points_are_averaged_and_have_a_median() -> None:
    [axes] = curves.alone("loss", STEPS, "loss", smooth=True).axes
    light, median = axes.lines
    assert len(light.get_xdata()) == curves.MOST_POINTS == len(median.get_xdata())
    assert list(light.get_xdata())[:2] == [3.0, 8.0]


def test_missing_values_are_left_out() -> None:
    [axes] = curves.alone("gap", STEPS, "gap", logarithmic=True).axes
    assert list(axes.lines[0].get_xdata()) == []
    lines = [{"step": 1, "rewards/chosen": 1.0, "rewards/rejected": None}]
    [axes] = curves.rewards(lines, [{"step": 1, "eval/rewards/rejected": -1.0}]).axes
    assert [line.get_label() for line in axes.lines] == ["chosen", "rejected", "rejected, evaluation"]
