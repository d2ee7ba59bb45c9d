"""What a store has of a run: the file that says so, and what is sent again after a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_hydra.tracking.sender import Point
from arctic_hydra.tracking.store_run import StoreRun


def point(step: int, **values: float) -> Point:
    return Point(step, values, 0.0)


def test_each_metric_of_each_step_is_sent_once(tmp_path: Path) -> None:
    run = StoreRun("any", tmp_path, "a/b", {})
    assert (run.run_id, run.closed_with) == ("", None)
    run.begin("x1")
    points = [point(1, loss=1.0), point(2, loss=0.5), point(2, accuracy=0.1)]
    assert run.unsent(points) == points
    run.sent(points[:2])
    again = StoreRun("any", tmp_path, "a/b", {})
    assert again.run_id == "x1" and again.unsent([point(2, loss=0.5, accuracy=0.1)]) == [point(2, accuracy=0.1)]
    again.ended("stopped")
    assert StoreRun("any", tmp_path, "a/b", {}).closed_with == "stopped"
    again.begin(again.run_id)
    assert again.closed_with is None and again.unsent(points[:1]) == []


@pytest.mark.parametrize("text", ["{", '{"run_id": 3}', "[]"])
def test_a_damaged_file_is_a_warning(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tracking-any.json").write_text(text)
    assert StoreRun("any", tmp_path, "a/b", {}).run_id == ""
    assert "tracking.any: " in caplog.text and "the run is logged anew" in caplog.text
