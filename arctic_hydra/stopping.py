"""Stop requests by signals and the kill-switch file; training stops at the next step boundary."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
REPEAT_SECONDS = 1.0
"""Time after which a signal counts as repeated; one request may arrive twice, from a launcher and through the process group."""
TASK_REPEAT_SECONDS = 10.0
"""The same for SIGTERM in an allocation of SLURM, where slurmstepd and srun each deliver it, on a busy cluster seconds apart."""


class StopRequest:
    """A flag set by a signal or a file; the trainer checks it between steps and synchronizes it across ranks.

    A thread receives signals with `sigwait`, because Python's handlers do not run while the main thread blocks in a
    collective. A signal may arrive twice (from a launcher and through the process group); only the first one counts.
    """

    def __init__(self, kill_switch: Path, *, is_ours: bool = True) -> None:
        self.kill_switch = kill_switch
        self._is_ours = is_ours
        self.reason = ""

    def requested(self, *, look_for_file: bool) -> bool:
        """Whether a stop has been requested."""
        if not self.reason and look_for_file and self.kill_switch.exists():
            self.reason = f"found the kill switch {self.kill_switch}"
        return bool(self.reason)

    def acknowledge(self) -> None:
        """Remove the kill-switch file, so that the next start does not stop at once.

        A file that the config names (`is_ours` false) is removed only if it is empty, as `touch` creates it.
        """
        with suppress(OSError):
            info = self.kill_switch.lstat()
            if self._is_ours or (stat.S_ISREG(info.st_mode) and info.st_size == 0):
                self.kill_switch.unlink()

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
def one_stop(seen: list[int]) -> Iterator[None]:
    """While the context is open, append signals that nothing forwards to `seen`, instead of their default action.

    If any was seen, this continues after the context: the process then reports the stop and exits with its code, which the
    default action of one more signal would replace. Blocking the signals would not do, since they would go to the threads of
    numpy.
    """

    def record_signal(number: int, frame: object) -> None:
        seen.append(number)

    before = {number: signal.signal(number, record_signal) for number in SIGNALS}
    try:
        yield
    finally:
        if not seen:
            _restore(before)


def ignore_signals() -> None:
    """Ignore `SIGNALS` until the process has ended; the interpreter resets other handlers before it exits."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Restore KeyboardInterrupt on Ctrl-C within this context."""
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def ask_to_stop(child: Any, number: int) -> None:
    """Send a signal to a child, and wake it if it is stopped (SIGSTOP), since a stopped process handles no signal."""
    child.send_signal(number)
    child.send_signal(signal.SIGCONT)


class _Requests:
    """The signals that asked a process to stop: which of them asks to end at once."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._first_to_end: float | None = None

    def ends_at_once(self, number: int) -> bool:
        """Whether a signal that arrives now repeats an earlier request.

        A second Ctrl-C repeats any signal. A second SIGTERM repeats a SIGTERM or Ctrl-C, but not SIGUSR2: SLURM sends
        SIGUSR2 before its time limit, and SIGTERM at the limit, when the checkpoint may still be being written.
        """
        now = time.monotonic()
        earlier = self._first if number == signal.SIGINT else self._first_to_end
        self._first = now if self._first is None else self._first
        if number not in (signal.SIGINT, signal.SIGTERM):
            return False
        self._first_to_end = now if self._first_to_end is None else self._first_to_end
        apart = TASK_REPEAT_SECONDS if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ else REPEAT_SECONDS
        return earlier is not None and now - earlier > apart


@contextmanager
def forwarded_signals(
    children: Callable[[], Sequence[Any]], what: str, seen: list[int], *, saves: bool = True
) -> Iterator[list[int]]:
    """While the context is open, forward the first of `SIGNALS` to the current `children`, and print that `what` stops.

    Appends every signal to `seen`, including those that this thread had blocked before. A second Ctrl-C or SIGTERM kills
    the children and is appended to the yielded list, as is the first signal if they have nothing to save (`saves` false). Code
    that starts a child in the context must forward earlier signals.
    """
    requests = _Requests()
    told: list[int] = []
    killed_by: list[int] = []

    def forward(number: int, frame: object) -> None:
        seen.append(number)
        at_once, is_first = not saves or requests.ends_at_once(number), not told
        if at_once:
            killed_by.append(number)
            for child in children():
                child.kill()  # the ranks of an agent die with it
        elif is_first:
            for child in children():
                ask_to_stop(child, number)
        if is_first:
            told.append(number)
            name = signal.Signals(number).name
            how = f"stopping {what}; interrupt again to end at once" if saves else f"ending {what}"
            with suppress(OSError):  # of a terminal that has been closed
                # A child that draws a bar of up to three lines overwrites those above the cursor.
                before, after = ("\n", "\n\n") if sys.stderr.isatty() else ("", "")
                print(f"{before}{name}: {how}{after}", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield killed_by
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _restore(before)


def kill_switch_problems(switch: str | None, output_root: str) -> Iterator[str]:
    """Yield why a kill switch cannot be one, as in a folder that does not exist; runs create theirs, below `output_root`."""
    if switch is None:
        return
    if Path(switch).is_dir():
        yield f"trainer.kill_switch_path: got {switch}, which is a directory; expected the path of a file, such as {switch}/STOP"
    elif os.path.lexists(switch):
        yield (
            f"trainer.kill_switch_path: got {switch}, which exists already; a kill switch is a file that you create to stop the "
            f"run (touch {switch}), and it is deleted then; delete it, or choose another path"
        )
    folder, root = Path(switch).absolute().parent, Path(output_root).absolute()
    if not folder.is_dir() and root not in (folder, *folder.parents):
        yield (
            f"trainer.kill_switch_path: got {switch}, but there is no folder {folder} to create the file in; create it, or "
            f"remove trainer.kill_switch_path to use STOP in the run directory"
        )
