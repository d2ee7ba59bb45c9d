"""No tracker; `tracking=none` is easier to read on a command line than `tracking=[]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra.component import component
from arctic_hydra.tracking.base import Tracker


@component(group="tracking", name="none")
class NoTracker(Tracker):
    """Sends nothing; `metrics.jsonl` is still written."""

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        """Do nothing."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""
