"""Base of the trackers, which send parameters and metrics to a store besides the run directory."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_hydra.component import Component


@dataclass(kw_only=True)
class Tracker(Component):
    """Base of the trackers; only global rank 0 calls them, and their failures never end a run."""

    @abstractmethod
    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        """Create the run `name` in the store, or reopen it if `run_dir` shows that it exists. `config` is resolved and
        has its secrets masked."""

    @abstractmethod
    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of one step."""

    def catch_up(self, run_dir: Path, name: str, config: dict[str, Any], status: str) -> None:
        """Send what the run in `run_dir` has not sent yet and end it with `status`. The composing process calls this
        after the ranks have exited. Does nothing by default, for trackers that cannot resume a run."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """End the run with `finished`, `stopped` or `failed`; waits at most 10 seconds."""
