"""Background thread that sends metrics to a store, so that a step never waits for the store."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from arctic_hydra.errors import StateFileError
from arctic_hydra.files.state_file import Schema, read_state
from arctic_hydra.metrics import read_metrics
from arctic_hydra.redaction import mask

log = logging.getLogger("arctic_hydra.tracking")

QUEUE_POINTS = 1000
"""Points held in memory; further ones are read back from `metrics.jsonl`."""
FINISH_SECONDS = 9.0
"""Maximum time to wait for a store at the end of a run."""
FILE_FINISH_SECONDS = 120.0
"""The same for files at the end of a finished run: they do respond, although a busy machine needs seconds to create an MLflow store."""
LINGER_SECONDS = 0.5
"""Time between two reads of the queue; all points that arrive in between are sent in one request."""
LONGEST_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class Point:
    """The metrics of one step."""

    step: int
    metrics: dict[str, float]
    seconds: float
    """Wall-clock time since the epoch."""


class Connection(Protocol):
    """One run in one store; only the sender's thread calls it. Any exception means that the store is unavailable."""

    in_files: bool = False
    """Whether the store consists of files, rather than of a server that may never respond."""

    def open(self) -> None:
        """Create the run, or reopen the one that the run directory refers to; called again after a failure."""

    def send(self, points: list[Point]) -> None:
        """Store the points that the run does not have yet."""

    def close(self, status: str) -> None:
        """End the run with `finished`, `stopped` or `failed`."""


class Sender:
    """Sends points from a bounded queue to a connection, and from `metrics.jsonl` what did not fit into the queue.

    The first failure logs a warning; later attempts use exponential backoff. After each reconnect the file is replayed,
    so no step is lost while the run lasts; running the same command again sends what is still missing.
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
        """Start the thread."""
        self._thread.start()

    def put(self, step: int, metrics: dict[str, float]) -> None:
        """Queue the metrics of one step; never blocks."""
        try:
            self._queue.put_nowait(Point(step, dict(metrics), time.time()))
        except queue.Full:
            self._overflowed = True

    def finish(self, status: str, *, in_rank: bool = True) -> None:
        """Send the remaining points, end the run and the thread.

        Gives up after `FINISH_SECONDS`, or `FILE_FINISH_SECONDS` if the store consists of files, unless this is a rank of a run that has
        not finished, which is not given so long.
        """
        self._status = status
        self._stop.set()
        has_time = status == "finished" or not in_rank
        seconds = FILE_FINISH_SECONDS if self._connection.in_files and has_time else FINISH_SECONDS
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn_once(f"no response within {seconds:.0f} seconds at the end of the run")

    def _work(self) -> None:
        while True:
            if not self._connected and time.monotonic() >= self._retry_at:
                self._attempt(self._open)
            stopping = self._stop.wait(LINGER_SECONDS)
            if stopping and not self._connected and self._was_connected:
                self._attempt(self._open)  # a last attempt, unless the store was never reachable
            if self._connected:
                self._attempt(self._drain)
            if stopping:
                break
        if self._connected:
            self._attempt(lambda: self._connection.close(self._status))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracking library raises, training continues
            self._connected = False
            self._failures += 1
            self._retry_at = time.monotonic() + min(LONGEST_RETRY_SECONDS, 2.0**self._failures)
            self._warn_once(f"{type(error).__name__}: {error}")

    def _open(self) -> None:
        self._connection.open()
        self._connected = self._was_connected = True
        self._replay()
        self._failures, self._warned = 0, False

    def _replay(self) -> None:
        """Send the rows of `metrics.jsonl`; those in the queue with their own time, which the file does not hold."""
        self._take_queued()
        self._unsent = self._unsent[-QUEUE_POINTS:]  # the file has all of them
        times = {point.step: point.seconds for point in self._unsent}
        points = read_points(self._metrics_path)
        self._connection.send([replace(point, seconds=times.get(point.step, point.seconds)) for point in points])

    def _take_queued(self) -> None:
        while not self._queue.empty():
            self._unsent.append(self._queue.get_nowait())

    def _drain(self) -> None:
        if self._overflowed:
            self._overflowed = False
            self._replay()
        self._take_queued()
        if self._unsent:
            self._connection.send(self._unsent)
            self._unsent = []

    def _warn_once(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            warn(self._what, problem)


def warn(what: str, problem: str) -> None:
    """Log a warning that a store is unavailable, without secrets."""
    log.warning(
        "%s: %s. Training continues and metrics.jsonl records every step; missing data is uploaded once the store responds, "
        "or when the same command is run again.",
        what,
        mask(" ".join(problem.split()))[:300].rstrip("."),
    )


def read_saved(path: Path, schema: Schema, what: str) -> dict[str, Any]:
    """Return what an earlier start saved about its run in a store; empty, with a warning, if the file cannot be used."""
    try:
        return read_state(path, schema) or {}
    except StateFileError as error:
        warn(what, str(error))
        return {}


def read_points(path: Path) -> list[Point]:
    """Return the numbers in a `metrics.jsonl` as points, with the modification time of the file as their time."""
    seconds = path.stat().st_mtime if path.exists() else time.time()
    return [Point(int(row["step"]), _numbers(row), seconds) for row in read_metrics(path)]


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in row.items() if isinstance(v, int | float) and name != "step"}
