"""Trackers: where a run's parameters and metrics go besides its own directory, which stays the truth."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_hydra.component import Component


@dataclass(kw_only=True)
class Tracker(Component):
    """Base of the trackers; only global rank 0 calls them, and no fault of theirs ever ends a run."""

    @abstractmethod
    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        """Open the run `name`, or open it again where `run_dir` shows that it was opened before; `config` is resolved
        and redacted."""

    @abstractmethod
    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of one step."""

    def catch_up(self, run_dir: Path, name: str, config: dict[str, Any], status: str) -> None:
        """Send what the run in `run_dir` left unsent and end it with `status`; for the composing process, once the
        ranks are gone. Does nothing where nothing is missing, or where the tracker keeps no memory of its own."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """Close the run with `finished`, `stopped` or `failed`; waits 10 seconds at most."""
