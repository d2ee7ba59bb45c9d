"""What an agent does about ranks that fail, stall or die: end the others, and report the cause."""

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
"""How long the other ranks of a failed one have to end by themselves: rank 0 tells the trackers."""
_TIMED_OUT = re.compile(r"time(d )?-?out", re.IGNORECASE)
"""What a collective says to a rank that has waited in vain."""


class FailureWatch:
    """Ends the ranks that do not end by themselves once one of them has failed, and says where they stood.

    Torch's agent sends SIGTERM, which a rank holds back until its step is over, and waits half a minute.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.stalled: dict[int, str] = {}
        """The Python stacks of each rank that had to be killed, by rank."""
        self._directory = directory
        self._stale = directory.error_files()  # of an earlier start, where the first node has not yet removed them
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
            send_signal(process, signal.SIGUSR1)  # `log.start` has it write the stacks
            send_signal(process, signal.SIGCONT)  # a frozen process would not
        _wait_for_stacks(logs, lengths)
        for rank, process in ranks.items():
            send_signal(process, signal.SIGKILL)
            log = logs[rank]
            self.stalled[rank] = log.read_bytes()[lengths[rank] :].decode(errors="replace") if log.exists() else ""


def _wait_for_stacks(logs: dict[int, Path], lengths: dict[int, int], timeout_seconds: float = 5.0) -> None:
    """Wait until each rank's log holds stacks beyond its former length; a process that was frozen needs a moment."""
    end = time.monotonic() + timeout_seconds
    while time.monotonic() < end:
        added = [log.read_bytes()[lengths[rank] :] if log.exists() else b"" for rank, log in logs.items()]
        if all(b"most recent call first" in text for text in added):
            time.sleep(0.2)  # the first thread's stack is there; let the others follow
            return
        time.sleep(0.1)


def send_signal(process: Any, number: signal.Signals) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):  # once it goes on, it may end by itself
        process.send_signal(number)


def living_ranks() -> dict[int, Any]:
    """Return the ranks that this agent started and that still run, by rank."""
    import psutil

    found: dict[int, Any] = {}
    for child in psutil.Process().children():
        with suppress(psutil.Error, KeyError):
            if child.status() != psutil.STATUS_ZOMBIE:
                found[int(child.environ()["RANK"])] = child
    return found


def report_silent_failures(directory: RunDirectory, failures: dict[int, int], stalled: dict[int, str]) -> None:
    """Leave an error for ranks that ended without one: what their peers report is only that these were gone.

    `failures` holds exit codes by rank, in the order in which the agent saw them.
    """
    told = {error["rank"] for error in directory.errors()}
    died = [rank for rank, code in failures.items() if code and rank not in told and rank not in stalled]
    for rank in died[:1]:  # the agent kills the rest itself
        code = failures[rank]
        how = (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} without a word"
        )
        hint = "; most often the kernel does that when memory runs out (see dmesg)" if code == -signal.SIGKILL else ""
        write_error(directory.path, rank, "RankDied", f"rank {rank} {how}{hint}")
    first = next(iter(directory.errors()), None)
    if first and not _TIMED_OUT.search(first["message"]):
        return  # what went wrong has been said: those that had to be killed were waiting for the rank that said it
    for rank, stacks in stalled.items():
        message = (
            f"rank {rank} stalled: the others waited trainer.collective_timeout_seconds for it, and it was killed. "
            "Where it stood:\n" + (stacks.strip() or "(it wrote no stack)")
        )
        write_error(directory.path, rank, "RankStalled", message)
