"""Requests to stop: signals and the kill-switch file, seen at once and acted on at the next step boundary."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class StopRequest:
    """A flag that a signal or a file raises; the trainer reads it between steps and agrees on it over the ranks.

    Signals are taken by a thread in `sigwait`: Python's own handlers do not run while the main thread sits in a
    collective. The same signal may arrive twice (from a launcher and along a process tree): the first one counts.
    """

    def __init__(self, kill_switch: Path) -> None:
        self.kill_switch = kill_switch
        self.reason = ""

    def requested(self, *, look_for_file: bool) -> bool:
        """Whether somebody asked for a stop."""
        if not self.reason and look_for_file and self.kill_switch.exists():
            self.reason = f"found the kill switch {self.kill_switch}"
        return bool(self.reason)

    def acknowledge(self) -> None:
        """Remove the kill-switch file, so that the next start does not stop at once."""
        self.kill_switch.unlink(missing_ok=True)

    def watch_signals(self) -> None:
        """Start the thread that takes `SIGNALS`; `block_signals` must have run before any other thread started."""
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def _wait(self) -> None:
        while True:
            number = signal.sigwait(SIGNALS)
            self.reason = self.reason or f"received {signal.Signals(number).name}"


def block_signals() -> None:
    """Hold `SIGNALS` back from every thread of this process; those that arrive stay pending until `sigwait` takes them.

    Children of `os.fork` and of multiprocessing's `fork` get them again. Programs started through `subprocess` inherit the
    mask, as processes of multiprocessing's `spawn` do, and have to unblock the signals they want to end by.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a launcher may have left them ignored, which sigwait would not see
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS))


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block `SIGNALS` in this thread while the context is open; they arrive at its end, or at another thread.

    Processes that this thread starts in the context begin with them blocked. One that calls `block_signals` later thereby
    misses none: those that arrive while its interpreter starts stay pending.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def forwarded_signals(children: Callable[[], Sequence[Any]], what: str, seen: list[int]) -> Iterator[list[int]]:
    """While the context is open, pass the first of `SIGNALS` on to those who are `children` then, and say what stops.

    All that arrive are appended to `seen`, also those that this thread had blocked before. A second interrupt kills the
    children and enters the yielded list. Who starts a child in the context has to pass on what was seen until then.
    """
    first: list[float] = []
    given_up: list[int] = []

    def forward(number: int, frame: object) -> None:
        seen.append(number)
        if not first:
            first.append(time.monotonic())
            name = signal.Signals(number).name
            print(f"{name}: stopping {what}; interrupt again to end at once", file=sys.stderr, flush=True)
            for child in children():
                child.send_signal(number)
        elif number == signal.SIGINT and time.monotonic() - first[0] > 1.0:
            given_up.append(number)
            for child in children():
                child.kill()  # ranks below an agent die with it

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield given_up
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
