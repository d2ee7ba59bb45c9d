"""A background thread between a run and a metric store: whatever the store does, a step never waits for it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arctic_hydra.metrics import read_metrics
from arctic_hydra.redaction import without_credentials

log = logging.getLogger("arctic_hydra.tracking")

QUEUE_POINTS = 1000
"""Points held in memory; what does not fit is read back from `metrics.jsonl`."""
FINISH_SECONDS = 9.0
"""Longest wait at the end of a run."""
LINGER_SECONDS = 0.5
"""Time between two looks at the queue: what arrives within it is sent in one request."""
LONGEST_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class Point:
    """The metrics of one step."""

    step: int
    metrics: dict[str, float]
    seconds: float
    """Wall-clock time since the epoch."""


class Connection(Protocol):
    """One run in one store; only the sender's thread calls it, and any exception means that the store is away."""

    def open(self) -> None:
        """Create the run, or open the one that this run directory names; may be called again after a failure."""

    def send(self, points: list[Point]) -> None:
        """Store what the run does not hold yet; points that it holds are left out."""

    def close(self, status: str) -> None:
        """End the run with `finished`, `stopped` or `failed`."""


class Sender:
    """Feeds a connection from a bounded queue, and from `metrics.jsonl` whatever the queue could not hold.

    A failure is one warning; the connection is tried again with growing pauses, and after each reopening the file is
    replayed, so nothing is lost while the run lives, and what is left is sent when the same command is given again.
    """

    def __init__(self, connection: Connection, metrics_path: Path, what: str) -> None:
        self._connection = connection
        self._metrics_path = metrics_path
        self._what = what
        self._queue: queue.Queue[Point] = queue.Queue(QUEUE_POINTS)
        self._unsent: list[Point] = []
        self._overflowed = False
        self._connected = False
        self._was_connected = False
        self._failures = 0
        self._warned = False
        self._retry_at = 0.0
        self._status = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="arctic_hydra.tracking", daemon=True)

    def start(self) -> None:
        """Start the thread; returns at once."""
        self._thread.start()

    def put(self, step: int, metrics: dict[str, float]) -> None:
        """Take the metrics of one step; never waits."""
        try:
            self._queue.put_nowait(Point(step, dict(metrics), time.time()))
        except queue.Full:
            self._overflowed = True

    def finish(self, status: str) -> None:
        """Send what is left, end the run and the thread; gives up after `FINISH_SECONDS`."""
        self._status = status
        self._stop.set()
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._warn_once(f"no answer within {FINISH_SECONDS:.0f} seconds at the end of the run")

    def _work(self) -> None:
        while True:
            if not self._connected and time.monotonic() >= self._retry_at:
                self._attempt(self._open)
            stopping = self._stop.wait(LINGER_SECONDS)
            if stopping and not self._connected and self._was_connected:
                self._attempt(self._open)  # one that was never reached is not waited for again
            if self._connected:
                self._attempt(self._drain)
            if stopping:
                break
        if self._connected:
            self._attempt(lambda: self._connection.close(self._status))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracking library raises, the run goes on
            self._connected = False
            self._failures += 1
            self._retry_at = time.monotonic() + min(LONGEST_RETRY_SECONDS, 2.0**self._failures)
            self._warn_once(f"{type(error).__name__}: {error}")

    def _open(self) -> None:
        self._connection.open()
        self._connected = self._was_connected = True
        self._replay()

    def _replay(self) -> None:
        self._connection.send(read_points(self._metrics_path))

    def _drain(self) -> None:
        if self._overflowed:
            self._overflowed = False
            self._replay()
        while not self._queue.empty():
            self._unsent.append(self._queue.get_nowait())
        if self._unsent:
            self._connection.send(self._unsent)
            self._unsent = []

    def _warn_once(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            warn(self._what, problem)


def warn(what: str, problem: str) -> None:
    """Say that a store is away, without credentials, and that nothing is lost."""
    log.warning(
        "%s: %s. The run goes on and metrics.jsonl keeps every step; what is missing is sent once the store answers, at "
        "the latest when the same command is given again.",
        what,
        without_credentials(" ".join(problem.split()))[:300],
    )


def read_points(path: Path) -> list[Point]:
    """Return the numbers of a `metrics.jsonl` as points, dated by the file's last change."""
    seconds = path.stat().st_mtime if path.exists() else time.time()
    return [Point(int(row["step"]), _numbers(row), seconds) for row in read_metrics(path)]


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in row.items() if isinstance(v, int | float) and name != "step"}
