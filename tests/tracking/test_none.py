"""`tracking=none` writes nothing."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra.tracking.none import NoTracker


def test_no_tracker_does_nothing(tmp_path: Path) -> None:
    tracker = NoTracker()
    tracker.start(tmp_path, "r", {})
    tracker.log(1, {"loss": 1.0})
    tracker.finish("finished")
    assert list(tmp_path.iterdir()) == []
