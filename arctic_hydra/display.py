"""Shows the progress of a run: a bar for the current phase on a terminal, plain lines elsewhere; both go to the log file.

Everything that takes time is a phase (`with display.phase("tokenize", ...)`), so that a terminal always shows activity. Processes
that have not called `shown` print nothing.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from arctic_hydra import log
from arctic_hydra.human_numbers import format_count, format_seconds
from arctic_hydra.metrics import SMOOTHED_LINES, evaluation_figures, ranked_pairs
from arctic_hydra.stopping import blocked_signals

SECONDS_BETWEEN_LINES = 10.0
"""Time without a line after which plain output and the log file report the progress of the current phase."""
_TRAIN = "train"
_LABEL_COLUMNS = 9
"""Width of the label column: the name of a phase or of a line of the header, or spaces below it."""

_file = logging.getLogger(log.SAID)


@dataclass
class Activity:
    """A part of a run that takes time: its name, what it works on, and how far it is."""

    name: str
    about: str = ""
    unit: str = ""
    """What `done` and `total` count; empty if nothing is counted."""
    total: int | None = None
    done: int = 0
    first: int = 0
    """Progress made before this process started."""
    started: float = field(default_factory=lambda: time.monotonic())

    def advance(self, count: int = 1) -> None:
        """Count what has been done."""
        self.done += count

    @property
    def seconds(self) -> float:
        """Time since the start of the phase."""
        return time.monotonic() - self.started

    @property
    def label(self) -> str:
        """Name and object of the phase."""
        return f"{self.name:<8} {self.about}".rstrip()

    def progress(self) -> str:
        """Return what is done, the rate and the time left; of a phase that counts nothing, the time taken."""
        if not self.unit:
            return format_seconds(self.seconds)
        of, new = "" if self.total is None else f"/{self.total:,}", self.done - self.first
        text = f"{self.done:,}{of} {self.unit}"
        if new <= 0:
            return f"{text}, {format_seconds(self.seconds)}"
        left = "" if self.total is None else f", left {format_seconds(self.seconds / new * (self.total - self.done))}"
        return f"{text}, {self._rate(new)}/s{left}"

    def summary(self) -> str:
        """Return the line that the phase leaves: what was done, the rate and the time taken."""
        new = self.done - self.first
        counts = f"{new:,} {self.unit}, {self._rate(new)} {self.unit}/s, " if self.unit and new > 0 else ""
        return self.line(f"{counts}{format_seconds(self.seconds)}")

    def line(self, figures: str) -> str:
        """Return a line about the phase."""
        return f"{self.label}: {figures}" if self.about else f"{self.label:<8} {figures}"

    def _rate(self, new: int) -> str:
        return format_count(float(f"{new / max(self.seconds, 1e-3):.3g}"))


class Display:
    """Shows the progress of one process on standard output, and writes the same lines to its log file."""

    def __init__(self, prints: bool = False, records: bool = False) -> None:
        """Print if `prints`; write to the log file, once `log.start` has opened it, if `records`."""
        self.prints, self.records = prints, records
        self._phases: list[Activity] = []
        self._closed = threading.Event()
        self._live: Any = None
        self._figures, self._unsaid, self._holder = "", "", "memory"
        self._last_line = self._last_step_line = time.monotonic()
        self._recent: deque[float] = deque(maxlen=SMOOTHED_LINES)

    def open(self) -> None:
        """Start drawing on a terminal; elsewhere, start reporting the progress of long phases."""
        with blocked_signals():  # threads inherit the mask, so that signals go to the main thread alone
            if self.prints and _is_terminal():
                self._live = _start_live(self._rows)
            if self._live is not None:
                log.set_terminal(self._print)
            if self.prints or self.records:
                threading.Thread(target=self._say_if_silent, name="display", daemon=True).start()

    def close(self) -> None:
        """Remove the bar and restore the terminal."""
        self._closed.set()
        if self._live is not None:
            sys.stdout.flush()  # a line without an end, which is still held back
            self._live.stop()
            self._live = None
            log.set_terminal(None)

    @contextmanager
    def phase(
        self, name: str, about: str = "", *, unit: str = "", total: int | None = None, transient: bool = False
    ) -> Iterator[Activity]:
        """Show a phase while this context is open; then print what was done, unless it is `transient` or failed.

        `unit` names what `Activity.advance` counts, and `total` is how many there are, if known.
        """
        current = Activity(name, about, unit, total)
        with self._during(current):
            yield current
        if not transient:
            self.say(current.summary())

    @contextmanager
    def training(self, horizon: int, done: int, holder: str = "memory") -> Iterator[None]:
        """Show the training, of which `done` of `horizon` steps are completed; `holder` names whose memory is logged."""
        current = Activity(_TRAIN, unit="steps", total=horizon, done=done, first=done)
        self._figures, self._unsaid, self._holder = "", "", holder
        self._recent.clear()
        with self._during(current):
            yield
            if self._unsaid:  # the run stops before its horizon
                self._say_step(above=True)
        self.say(current.summary())

    @contextmanager
    def _during(self, current: Activity) -> Iterator[None]:
        self._phases.append(current)
        try:
            yield
        finally:
            self._phases.remove(current)

    def step(self, values: dict[str, Any]) -> None:
        """Show one logged step."""
        step, training = values["step"], next((item for item in self._phases if item.name == _TRAIN), None)
        self._figures, now = self._training_figures(values), time.monotonic()
        horizon, is_shown = "", False
        if training is not None:
            training.done = step
            horizon, is_shown = f"/{training.total}", step in (training.first + 1, training.total)
        left = "" if training is None else f"  left {_left(training)}"
        self._unsaid = f"step {step}{horizon}  {self._figures}{left}"
        # Lines are for files: about one per second, always including the first and the last step.
        if is_shown or now - self._last_step_line > 1.0:
            self._say_step(above=step == (training and training.total))

    def _say_step(self, *, above: bool) -> None:
        self._last_step_line = time.monotonic()
        self._write(self._unsaid, above=above)
        self._unsaid = ""

    def evaluation(self, values: dict[str, Any], seconds: float | None = None) -> None:
        """Show one evaluation, which took `seconds`."""
        figures = f"loss {values['eval/loss']:.4f}" if "eval/loss" in values else "no supervised tokens"
        took = "" if seconds is None else f", {format_seconds(seconds)}"
        self.say(f"evaluation at step {values['step']}: {', '.join([figures, *evaluation_figures(values)])}{took}")

    def say(self, text: str) -> None:
        """Print lines, above the bar if there is one, and write them to the log file."""
        for line in text.splitlines():
            self._write(line)

    def record(self, text: str) -> None:
        """Write a line to the log file only."""
        if self.records:
            _file.info("%s", text)

    def _write(self, line: str, *, above: bool = True) -> None:
        """Write a line to the log file and print it; above a bar only if `above`."""
        self._last_line = time.monotonic()
        self.record(line)
        if self.prints and (above or self._live is None):
            self._print(line)

    def _print(self, text: str) -> None:
        text = "\n".join(map(fitted, text.splitlines()))
        live = self._live  # another thread may close it
        try:
            if live is not None:
                live.console.print(text)
                return
            sys.stdout.write(f"{text}\n")  # in one write, because another thread prints as well
            sys.stdout.flush()
        except OSError:  # the reader of our output has exited, or the terminal was closed; training continues
            self.prints = False

    def _say_if_silent(self) -> None:
        while not self._closed.wait(1.0):
            current = next(iter(self._phases[-1:]), None)
            if current and time.monotonic() - max(self._last_line, current.started) > SECONDS_BETWEEN_LINES:
                self._write(current.line(current.progress()), above=False)

    def _training_figures(self, values: dict[str, Any]) -> str:
        """Return the figures of a log line; the loss is the mean over the last `SMOOTHED_LINES` lines."""
        loss = values["loss"]
        if loss is not None and math.isfinite(loss):
            self._recent.append(loss)
            loss = sum(self._recent) / len(self._recent)
        parts = ["loss n/a" if loss is None else f"loss {loss:.4f}"]
        parts += [f"epoch {values['epoch']:.2f}"] if "epoch" in values else []
        parts.append(f"lr {values['lr']:.3g}")
        parts += [f"norm {values['grad_norm']:.3g}"] if "grad_norm" in values else []
        if ranked := ranked_pairs(values):
            parts.append(f"ranked right {ranked[0]:.0%}  margin {ranked[1]:.3g}")
        parts.append(f"{format_count(values['tokens_per_second'])} tok/s")
        parts += [f"{self._holder} {values['memory_gib']:.2f} GiB"] if "memory_gib" in values else []
        return "  ".join(parts)

    def _rows(self) -> Any:
        """Return what the terminal shows at its bottom: the training, if it runs, and the innermost phase."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        phases = list(self._phases)
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, overflow="ellipsis", justify="right")
        shown = [item for index, item in enumerate(phases) if item.name == _TRAIN or index == len(phases) - 1]
        for item in shown:
            bar = ProgressBar(item.total, item.done, pulse=item.total is None)
            table.add_row(Text(item.label), bar, Text(item.progress()))
        trains = any(item.name == _TRAIN for item in shown)
        figures = [Text(self._figures, no_wrap=True, overflow="ellipsis")] if trains and self._figures else []
        return Group(table, *figures)


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def fitted(line: str) -> str:
    """Return the line as a terminal shows it best: broken between words, and continued below its text, not its label."""
    if not _is_terminal() or len(line) <= (width := shutil.get_terminal_size().columns):
        return line
    indent = _LABEL_COLUMNS if line[:_LABEL_COLUMNS].endswith(" ") else 2
    wrapper = textwrap.TextWrapper(
        width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(wrapper.wrap(line))


def _left(training: Activity) -> str:
    done, horizon = training.done - training.first, training.total or 0
    return format_seconds(training.seconds / done * (horizon - training.done)) if done >= 3 else "?"


def _start_live(rows: Callable[[], Any]) -> Any:
    from rich.console import Console
    from rich.live import Live

    live = Live(
        console=Console(markup=False, emoji=False, highlight=False),  # prints what others print, as it is
        get_renderable=rows,
        refresh_per_second=5,
        transient=True,
        redirect_stdout=True,
        redirect_stderr=False,
    )
    if not live.console.is_terminal or live.console.is_dumb_terminal:  # it would draw nothing
        return None
    live.start()
    return live


_current = Display()


def current() -> Display:
    """Return the display of this process."""
    return _current


@contextmanager
def shown(prints: bool, records: bool = False) -> Iterator[Display]:
    """Show the progress of this process while this context is open."""
    global _current
    before, _current = _current, Display(prints, records)
    _current.open()
    try:
        yield _current
    finally:
        _current.close()
        _current = before


def phase(
    name: str, about: str = "", *, unit: str = "", total: int | None = None, transient: bool = False
) -> AbstractContextManager[Activity]:
    """Return a context that shows a phase of this process, see `Display.phase`."""
    return _current.phase(name, about, unit=unit, total=total, transient=transient)


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """Show on standard error, if it is a terminal, that a command whose output is its answer is still working on it."""
    with redirect_stdout(sys.stderr), shown(prints=_is_terminal()), phase(name, transient=True):
        yield


def say_cached(about: str, examples: int) -> None:
    """Print that the examples of a source are read from the cache, in place of the phases `read` and `tokenize`."""
    _current.say(Activity("read", about).line(f"{examples:,} examples from the cache"))


def restore_terminal() -> None:
    """Show the cursor of the terminal again, which a child that was killed while it drew a bar has left hidden."""
    if _is_terminal():
        sys.stdout.write("\r\x1b[K\x1b[?25h")
        sys.stdout.flush()
