"""Stop requests by signals and the kill-switch file; training stops at the next step boundary."""

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
    """A flag set by a signal or a file; the trainer checks it between steps and synchronizes it across ranks.

    A thread receives signals with `sigwait`, because Python's handlers do not run while the main thread blocks in a
    collective. A signal may arrive twice (from a launcher and through the process group); only the first one counts.
    """

    def __init__(self, kill_switch: Path) -> None:
        self.kill_switch = kill_switch
        self.reason = ""

    def requested(self, *, look_for_file: bool) -> bool:
        """Whether a stop has been requested."""
        if not self.reason and look_for_file and self.kill_switch.exists():
            self.reason = f"found the kill switch {self.kill_switch}"
        return bool(self.reason)

    def acknowledge(self) -> None:
        """Remove the kill-switch file, so that the next start does not stop at once."""
        self.kill_switch.unlink(missing_ok=True)

    def watch_signals(self) -> None:
        """Start the thread that receives `SIGNALS`; call `block_signals` before any other thread starts."""
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def _wait(self) -> None:
        while True:
            number = signal.sigwait(SIGNALS)
            self.reason = self.reason or f"received {signal.Signals(number).name}"


def block_signals() -> None:
    """Block `SIGNALS` in all threads of this process; they stay pending until `sigwait` receives them.

    Children created by `os.fork` and by multiprocessing's `fork` unblock them. Programs started by `subprocess` and by
    multiprocessing's `spawn` inherit the mask and must unblock the signals that should end them.
    """
    # A launcher may have set them to be ignored, and sigwait never receives ignored signals.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS))


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block `SIGNALS` in this thread while the context is open; they stay pending until it ends, or go to another thread.

    Child processes that the thread starts meanwhile inherit the mask. One that calls `block_signals` later misses no signal,
    because those that arrive while its interpreter starts stay pending.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def forwarded_signals(children: Callable[[], Sequence[Any]], what: str, seen: list[int]) -> Iterator[list[int]]:
    """While the context is open, forward the first of `SIGNALS` to the current `children`, and print that `what` stops.

    Appends every signal to `seen`, including those that this thread had blocked before. A second interrupt kills the
    children and is appended to the yielded list. Code that starts a child in the context must forward earlier signals.
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
                child.kill()  # the ranks of an agent die with it

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield given_up
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
