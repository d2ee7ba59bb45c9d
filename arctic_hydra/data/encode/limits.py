"""Limits of time and memory for chat templates, which are programs that come with a tokenizer.

Jinja's sandbox keeps a template from reaching anything outside, but not from computing without end: it only bounds `range`.
A watchdog thread ends what runs bytecode, with an error that names the row. One operation on nested lists (`a == b`) runs
none and lets no other thread run, however long it takes: the kernel then ends the process with SIGPROF.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from arctic_hydra.errors import DataError

MAX_SECONDS = 20.0
"""CPU time of the calling thread to render one conversation and locate its turns, or to render a batch at once."""
MAX_BYTES = 4 << 30
"""Memory that rendering a batch may take, beyond what the process had mapped before."""
ALARM_SECONDS = 300.0
"""CPU time of the whole process for a conversation, after which SIGPROF ends the process."""
MAX_BITS = 1 << 14
"""Size of an integer that a template may compute: one operation on large ones takes hours, and nothing interrupts it."""
_POLL_SECONDS = 0.1
_SLOW_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters whose regular expressions take quadratic time within one call; chat templates do not use them."""


class RenderLimitError(DataError):
    """A chat template exceeds one of the limits of this module."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"tokenizer.chat_template: the template {what}; correct it, or pass tokenizer.chat_template=<file with another>"
        )

    def __reduce__(self) -> tuple[type[RenderLimitError], tuple[str]]:
        return RenderLimitError, (
            self.what,
        )  # a worker's error reaches the main process; `args` is the finished sentence


class TimeUpError(BaseException):
    """Raised by the watchdog within the thread that renders; no `except Exception` of a template's caller stops it."""


class Watch:
    """The time that one thread may compute until the next `restart`."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self.thread)
        self._began = time.clock_gettime(self._clock)
        self._count = self._seen = 0
        self._fired = self._stopped = False
        self._lock = threading.Lock()
        _set_alarm(self)

    def restart(self) -> None:
        """Start to count anew, for the next conversation; the watchdog reads the clock, which takes microseconds."""
        self._count += 1
        _set_alarm(self)
        if self._fired:
            self._withdraw()

    def stop(self) -> None:
        """Never raise TimeUpError again."""
        self._stopped = True
        _clear_alarm(self)
        self._withdraw()

    def check(self) -> None:
        """Raise TimeUpError in the watched thread if its time is up; called by the watchdog."""
        with self._lock:
            if self._fired or self._stopped:
                return  # the thread may have ended, and its clock with it
            now = time.clock_gettime(self._clock)
            if self._seen != self._count:
                self._seen, self._began = self._count, now
            elif now - self._began > MAX_SECONDS:
                self._fired = True
                _raise_in(self.thread, TimeUpError)

    def _withdraw(self) -> None:
        with self._lock:
            if self._fired:
                _raise_in(self.thread, None)  # not delivered yet
            self._fired = False


_watched: set[Watch] = set()


def _set_alarm(watch: Watch) -> None:
    """Let the kernel end the process in `ALARM_SECONDS`, unless something else uses the timer; it is one per process."""
    if signal.getsignal(signal.SIGPROF) is signal.SIG_DFL:
        _watched.add(watch)
        signal.setitimer(signal.ITIMER_PROF, ALARM_SECONDS)


def _clear_alarm(watch: Watch) -> None:
    _watched.discard(watch)
    if not _watched and signal.getsignal(signal.SIGPROF) is signal.SIG_DFL:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Make a thread raise `error` before its next bytecode, or with None no longer raise one."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))


@contextmanager
def render_limits() -> Iterator[Watch]:
    """Bound the CPU time and the memory of this thread; raises RenderLimitError.

    The memory is bounded only in the main thread: the limit is the process's, and other threads may be training.
    """
    watch = Watch()
    finished = threading.Event()
    threading.Thread(target=_check_until, args=(watch, finished), daemon=True).start()
    try:
        try:
            with _memory_bounded():
                yield watch
        finally:
            finished.set()
            watch.stop()
    except TimeUpError:
        watch.stop()
        raise RenderLimitError(too_slow()) from None
    except MemoryError:
        raise RenderLimitError(too_large()) from None


def too_slow() -> str:
    """Return what a template does that TimeUpError ends."""
    return f"computes for more than {MAX_SECONDS:g} seconds"


def too_large() -> str:
    """Return what a template does that MemoryError ends."""
    return f"takes more than {MAX_BYTES >> 20:,} MiB of memory"


def _check_until(watch: Watch, finished: threading.Event) -> None:
    while not finished.wait(_POLL_SECONDS):
        watch.check()


@contextmanager
def _memory_bounded() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MAX_BYTES
    ceilings = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *ceilings]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without the operations that one call of `render_limits` could not interrupt."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for name in _SLOW_FILTERS:
            del self.filters[name]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Carry out a product or a power unless it is a large integer."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise RenderLimitError(f"makes an integer of more than {MAX_BITS:,} bits")
        return super().call_binop(context, operator, left, right)
