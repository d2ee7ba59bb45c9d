"""A run trains through kills, and nothing that it leaves, holds or opens grows; the long form is `nox -s faults`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import soak
from tests.faults.slope import Point


@pytest.mark.faults
@pytest.mark.slow
def test_a_short_soak(tmp_path, monkeypatch, capsys):
    options = "--minutes 0.05 --kills 2 --pause 0 --steps 34 --results"
    monkeypatch.setattr(sys, "argv", ["soak", *options.split(), str(tmp_path / "soak.json")])
    assert soak.main() == 0, capsys.readouterr()
    report = json.loads((tmp_path / "soak.json").read_text())
    assert sum(report["kills"].values()) == 2 and report["problems"] == []
    assert {row["figure"] for row in report["figures"]} == set(soak.BOUNDS)
    assert all(row["samples"] for row in report["figures"])


@pytest.mark.parametrize("times", [0.5, 2.0])
def test_each_figure_that_grows_is_named(times):
    minutes = 30.0
    trial = soak.Soak(Path("/absent"), "", {}, minutes, 3.0, random.Random(0), began=time.monotonic() - 60 * minutes)
    for figure, bound in soak.BOUNDS.items():
        growth = times * bound.limit(0.75 if figure == soak.WARM_MEMORY else 20)  # starts of a minute, sampled 4 times
        trial.series[figure] = [
            Point(number / 4, 50 + growth * number / 4, number // 4, 1 + number % 4 / 4) for number in range(80)
        ]
    assert len(soak.judge(trial)) == len(soak.BOUNDS)
    assert [problem.partition(": grows by ")[0] for problem in trial.problems] == ([] if times < 1 else [*soak.BOUNDS])
    assert all(" per minute, more than " in problem for problem in trial.problems)


def test_processes_that_a_start_leaves_are_found(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={soak.MARK: str(tmp_path)})
    try:
        assert [item.pid for item in soak.left_behind(tmp_path)] == [process.pid]
        assert list(soak.left_behind(tmp_path / "other")) == []
    finally:
        process.communicate(b"\n")
    assert list(soak.left_behind(tmp_path)) == []
