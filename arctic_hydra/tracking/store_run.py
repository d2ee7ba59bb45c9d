"""What trackers have in common that send points to one run of a store through a `Sender`: start and end, and what was sent."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_hydra.files.state_file import Schema, Table, replace_text
from arctic_hydra.metrics import read_samples
from arctic_hydra.tracking.base import Tracker
from arctic_hydra.tracking.sender import Connection, Point, Sender, read_saved

_STATE = Schema(
    "it is ignored, and the run is logged anew",
    Table({"run_id": str}, {"last_steps": dict, "status": (str, None), "reached": bool}),
)


_SAMPLES = "samples.jsonl"
"""Key of the last step whose samples were sent, next to the names of metrics."""


class StoreRun(Connection):
    """The run of one run directory in a store, and a file that says what the store has; subclasses send it.

    Only one thread calls it; every method may block and may raise.
    """

    def __init__(self, option: str, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        self.label = f"tracking.{option}"
        self.metrics_path = run_dir / "metrics.jsonl"
        self._samples_path = run_dir / "samples.jsonl"
        self.folder = run_dir / f"tracking-{option}"
        """The tracker's own folder in the run directory."""
        self.name = name
        self.config = config
        self._state_path = run_dir / f"tracking-{option}.json"
        self._state = read_saved(self._state_path, _STATE, self.label)

    @property
    def run_id(self) -> str:
        """Id of the run in the store; empty before the store was first opened."""
        return str(self._state.get("run_id", ""))

    @property
    def closed_with(self) -> str | None:
        """The status with which the run was ended after its last metrics; None if it was not ended."""
        status: str | None = self._state.get("status")
        return status

    def begin(self, run_id: str) -> None:
        """Record that the run is open under this id, before anything is sent."""
        self._write({"last_steps": {}, **self._state, "run_id": run_id, "status": None})

    @property
    def was_reached(self) -> bool:
        """Whether an earlier start reached the store."""
        return bool(self._state.get("reached", self._state.get("last_steps")))

    def unsent(self, points: Sequence[Point]) -> list[Point]:
        """Return the points with the metrics that are newer than the last step sent of each, in the order of their steps."""
        last = self._state["last_steps"]
        found = [
            Point(
                point.step,
                {key: value for key, value in point.metrics.items() if point.step > last.get(key, -1)},
                point.seconds,
            )
            for point in points
        ]
        return sorted((point for point in found if point.metrics), key=lambda point: point.step)

    def sent(self, points: Sequence[Point]) -> None:
        """Record that the store has the run and these points."""
        if points or not self.was_reached:
            steps = {key: point.step for point in points for key in point.metrics}
            self._write(self._state | {"last_steps": self._state["last_steps"] | steps, "reached": True})

    def unsent_samples(self) -> dict[int, list[dict[str, Any]]]:
        """Return what `callback=[samples]` has generated since the last step sent: prompt and completion, by step."""
        last, found = self._state["last_steps"].get(_SAMPLES, -1), dict[int, list[dict[str, Any]]]()
        for sample in read_samples(self._samples_path):
            if sample["step"] > last:
                found.setdefault(sample["step"], []).append(sample)
        return found

    def sent_samples(self, step: int) -> None:
        """Record that the store has the samples up to a step."""
        self._write(self._state | {"last_steps": self._state["last_steps"] | {_SAMPLES: step}})

    def ended(self, status: str) -> None:
        """Record that the run was ended in the store."""
        self._write(self._state | {"status": status})

    def _write(self, state: dict[str, Any]) -> None:
        self._state = state
        replace_text(self._state_path, json.dumps(state, indent=2) + "\n")


@dataclass(kw_only=True)
class StoreTracker(Tracker):
    """Base of the trackers whose runs are `StoreRun`s; a step never waits for the store."""

    @abstractmethod
    def store_run(self, run_dir: Path, name: str, config: dict[str, Any]) -> StoreRun | None:
        """Return the run of an absolute run directory, or None if nothing is to be sent."""

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        """Open the run in the background and send the rows of `metrics.jsonl` that the store does not have."""
        self._sender = self._start(self.store_run(run_dir.resolve(), name, config))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Queue the metrics of one step; never blocks."""
        if self._sender:
            self._sender.put(step, metrics)

    def finish(self, status: str) -> None:
        """Send the remaining metrics and end the run; waits at most 10 seconds for a server."""
        if self._sender:
            self._sender.finish(status)

    def catch_up(self, run_dir: Path, name: str, config: dict[str, Any], status: str) -> None:
        """Send what the store does not have and end the run with `status`, unless that is done; waits at most 10 seconds for a server.

        A run that failed before it reached the store is not created there.
        """
        run = self.store_run(run_dir.resolve(), name, config)
        if run is None or run.closed_with == status or (status == "failed" and not run.was_reached):
            return
        sender = self._start(run)
        if sender:
            sender.finish(status, in_rank=False)

    @staticmethod
    def _start(run: StoreRun | None) -> Sender | None:
        if run is None:
            return None
        sender = Sender(run, run.metrics_path, run.label)
        sender.start()
        return sender
