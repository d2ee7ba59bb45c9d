"""Handles ranks that fail, stall or die: ends the other ranks and reports the cause."""

from __future__ import annotations

import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from arctic_hydra.run_directory import RunDirectory, write_error

GRACE_SECONDS = 10
"""Time for the other ranks to exit after one failed; rank 0 reports the failure to the trackers meanwhile."""
_TIMED_OUT = re.compile(r"time(d )?-?out", re.IGNORECASE)
_OF_COLLECTIVES = ("RuntimeError", "DistBackendError", "DistError", "DistNetworkError", "DistStoreError")
"""Kinds of the errors of a collective that timed out: of gloo, of NCCL and of torch's store."""


class FailureWatch:
    """Kills the ranks that do not exit after one of them has failed, and collects their stacks.

    Torch's agent instead sends SIGTERM, which ranks block until their step is over, and waits for half a minute.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.stalled: dict[int, str] = {}
        """The Python stacks of each rank that had to be killed, by rank."""
        self._directory = directory
        self._stale = directory.error_files()  # of an earlier start, if node 0 has not removed them yet
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failures", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while self._directory.error_files() <= self._stale:
            if self._over.wait(0.2):
                return
        if self._over.wait(GRACE_SECONDS):
            return
        ranks = living_ranks()
        logs = {rank: self._directory.path / "logs" / f"rank{rank}.log" for rank in ranks}
        lengths = {rank: log.stat().st_size if log.exists() else 0 for rank, log in logs.items()}
        for process in ranks.values():
            send_signal(process, signal.SIGUSR1)  # `log.start` has registered a handler that writes the stacks
            send_signal(process, signal.SIGCONT)  # a stopped process does not handle signals
        _wait_for_stacks(logs, lengths)
        for rank, process in ranks.items():
            send_signal(process, signal.SIGKILL)
            log = logs[rank]
            self.stalled[rank] = log.read_bytes()[lengths[rank] :].decode(errors="replace") if log.exists() else ""


def _wait_for_stacks(logs: dict[int, Path], lengths: dict[int, int], timeout_seconds: float = 5.0) -> None:
    """Wait until stacks have been appended to the log of every rank; a process that was stopped needs a moment."""
    end = time.monotonic() + timeout_seconds
    while time.monotonic() < end:
        added = [log.read_bytes()[lengths[rank] :] if log.exists() else b"" for rank, log in logs.items()]
        if all(b"most recent call first" in text for text in added):
            time.sleep(0.2)  # the stack of the first thread is written; wait for the others
            return
        time.sleep(0.1)


def send_signal(process: Any, number: signal.Signals) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):  # it may have exited in the meantime
        process.send_signal(number)


def living_ranks() -> dict[int, Any]:
    """Return the running processes of this agent's ranks, by rank."""
    import psutil

    found: dict[int, Any] = {}
    for child in psutil.Process().children():
        with suppress(psutil.Error, KeyError):
            if child.status() != psutil.STATUS_ZOMBIE:
                found[int(child.environ()["RANK"])] = child
    return found


def report_silent_failures(directory: RunDirectory, failures: dict[int, int], stalled: dict[int, str]) -> None:
    """Write an error for ranks that exited without reporting one; their peers only report lost connections.

    `failures` contains exit codes by rank, in the order in which the agent saw them.
    """
    reported = {error["rank"] for error in directory.errors()}
    died = [rank for rank, code in failures.items() if code and rank not in reported and rank not in stalled]
    for rank in died[:1]:  # the agent kills the rest itself
        code = failures[rank]
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"exited with code {code} without reporting an error"
        )
        hint = ", most likely by the kernel's OOM killer (check dmesg)" if code == -signal.SIGKILL else ""
        write_error(directory.path, rank, "RankDied", f"rank {rank} {how}{hint}")
    first = next(iter(directory.errors()), None)
    if first and not (first["kind"] in _OF_COLLECTIVES and _TIMED_OUT.search(first["message"])):
        return  # the cause is reported: the killed ranks were waiting for the rank that reported it
    for rank, stacks in stalled.items():
        message = (
            f"rank {rank} stalled: the other ranks waited trainer.collective_timeout_seconds for it, and it was killed. "
            "Stack of the stalled rank:\n" + (stacks.strip() or "(no stack was written)")
        )
        write_error(directory.path, rank, "RankStalled", message)
