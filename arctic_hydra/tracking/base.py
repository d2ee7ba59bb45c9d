"""Base of the trackers, which send parameters and metrics to a store besides the run directory."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_hydra.component import Component
from arctic_hydra.errors import describe

log = logging.getLogger("arctic_hydra.tracking")


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
        """End the run with `finished`, `stopped` or `failed`; waits at most 10 seconds for a server."""


def call_each(trackers: Iterable[Tracker], method: str, *arguments: Any) -> list[Tracker]:
    """Call a method of each tracker; return those that did not fail, for later calls. A failure is a warning, never an error."""
    left = []
    for tracker in trackers:
        try:
            getattr(tracker, method)(*arguments)
        except Exception as error:
            name = tracker.option_name or type(tracker).__name__
            log.warning("tracking.%s failed in %s and is left out from now on: %s", name, method, describe(error))
        else:
            left.append(tracker)
    return left
