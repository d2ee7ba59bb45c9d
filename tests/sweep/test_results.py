"""Rows and tables of a sweep, and its best job."""

from __future__ import annotations

import math

import pytest

from arctic_hydra import metrics
from arctic_hydra.sweep import page, results
from arctic_hydra.sweep.controller import SweepController
from arctic_hydra.sweep.pool import Slots
from tests.sweep.sweeps import sweep_of


def test_tables_show_what_differs(tmp_path):
    sweep = sweep_of(tmp_path, ["name=a", "optimizer.lr=1"], ["name=a", "optimizer.lr=2"], ["name=a", "+x.y=3"])
    assert results.varied_values(sweep) == [{"optimizer.lr": "1"}, {"optimizer.lr": "2"}, {"x.y": "3"}]
    assert results.short_names(["optimizer.lr", "x.lr", "a.b"]) == {
        "optimizer.lr": "optimizer.lr",
        "x.lr": "x.lr",
        "a.b": "b",
    }
    search = sweep_of(tmp_path, ["name=a", "optimizer.lr=1"], kind="search", command=["name=a", "optimizer.lr=1,2"])
    assert results.varied_values(search) == [{"optimizer.lr": "1"}]


@pytest.mark.parametrize(("kind", "space"), [("grid", "1,2"), ("search", "choice(1,2)")])
def test_a_key_given_twice_has_its_last_value_in_every_row(kind, space, tmp_path):
    """A key with a value and then a space: what equals the first value is no less a value of the space."""
    twice = ["seed=1"] if kind == "grid" else []  # a search keeps what it searches apart
    sweep = sweep_of(tmp_path, [*twice, "seed=1"], [*twice, "seed=2"], kind=kind, command=["seed=1", f"seed={space}"])
    assert results.varied_values(sweep) == [{"seed": "1"}, {"seed": "2"}]


def test_a_grid_of_one_job_varies_nothing(tmp_path):
    """The command's own words, `1e-3`, are not a job's, `0.001`."""
    sweep = sweep_of(
        tmp_path, ["optimizer.lr=0.001", "log.report=False"], command=["optimizer.lr=1e-3", "log.report=false"]
    )
    assert results.varied_values(sweep) == [{}]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("auto", [{"step": 1, "loss": 2.0}, {"step": 1, "eval/loss": math.nan}]),
        ("auto", [{"step": 1, "eval/loss": 3.0}, {"step": 2, "eval/loss": math.inf}]),
        ("loss", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}]),
        ("eval/loss", [{"step": 0, "eval/loss": 3.0}, {"step": 1, "eval/loss": math.nan}, {"step": 1, "loss": 1.0}]),
    ],
)
@pytest.mark.parametrize("maximize", [False, True])
def test_a_job_that_diverged_is_the_worst_and_never_the_best(name, lines, maximize, tmp_path):
    """Neither its training loss nor an earlier evaluation replaces the objective; a search gets infinity."""
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])
    sweep.objective, sweep.maximize = name, maximize
    for job, logged in zip(sweep.jobs, (lines, [{"step": 1, "loss": 5.0}, {"step": 2, "eval/loss": 5.0}]), strict=True):
        job.directory.create()
        job.directory.update_record(status="finished")
        file = metrics.MetricsFile(tmp_path / f"run{job.number}" / "metrics.jsonl")
        for line in logged:
            file.write(line)
        file.close()
    table = results.rows(sweep)
    assert math.isnan(table[0].objective) and table[1].objective == 5.0
    assert results.best(sweep, table) is table[1] and results.best(sweep, table[:1]) is None
    text = results.text(sweep, table)
    best = "loss" if name == "loss" else "eval/loss"
    assert f"job 0 diverged: its last {best} is not a finite number" in text
    assert f"best: job 1, {best} 5.0000" in text
    controller = SweepController(sweep, None, {}, Slots(1))
    assert controller.value(sweep.jobs[0]) == (-math.inf if maximize else math.inf)
    assert controller.value(sweep.jobs[1]) == 5.0 and not sweep.jobs[0].problem
    assert "<svg" in page.write(sweep, table).read_text()
