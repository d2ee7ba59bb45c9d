"""Requests to stop: signals and the kill-switch file, seen at once and acted on at the next step boundary."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

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
    """Hold `SIGNALS` back from every thread of this process; forked children get them again."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a launcher may have left them ignored, which sigwait would not see
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS))
