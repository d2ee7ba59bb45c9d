"""Progress display of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Any

from arctic_hydra import log
from arctic_hydra.human_numbers import format_count, format_seconds
from arctic_hydra.metrics import evaluation_figures


class Display:
    """Shows the progress of one run on standard output; silent if not `enabled`."""

    def __init__(self, horizon: int, done: int, enabled: bool) -> None:
        self.horizon = horizon
        self.enabled = enabled
        self._start_step = done
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._last_line = 0.0
        if enabled and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            self._bar, self._task = _rich_bar(horizon, done)
            log.set_terminal(self.say)

    def step(self, values: dict[str, Any]) -> None:
        """Show one logged step."""
        if not self.enabled:
            return
        step = values["step"]
        text = _figures(values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=text)
        elif time.monotonic() - self._last_line > 1.0 or step in (self._start_step + 1, self.horizon):
            # Plain output is for log files: about one line per second, always including the first and the last step.
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self.horizon}  {text}  left {self._left(step)}")

    def evaluation(self, values: dict[str, Any]) -> None:
        """Show one evaluation."""
        figures = f"loss {values['eval/loss']:.4f}" if "eval/loss" in values else "no supervised tokens"
        self.say(f"evaluation at step {values['step']}: {', '.join([figures, *evaluation_figures(values)])}")

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            try:
                print(text, flush=True)
            except BrokenPipeError:  # the reader of our output has exited; training continues
                self.enabled = False

    def close(self) -> None:
        """Remove the bar and restore the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            log.set_terminal(None)

    def _left(self, step: int) -> str:
        done = step - self._start_step
        elapsed = time.monotonic() - self._start
        return format_seconds(elapsed / done * (self.horizon - step)) if done >= 3 else "?"


def _figures(values: dict[str, Any]) -> str:
    loss = values["loss"]
    shown = "n/a" if loss is None else f"{loss:.4f}"
    return f"loss {shown}  lr {values['lr']:.3g}  {format_count(values['tokens_per_second'])} tokens/s"


def _rich_bar(horizon: int, done: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    wide = shutil.get_terminal_size().columns >= 80
    columns = [TextColumn("step"), MofNCompleteColumn()]
    columns += [BarColumn(bar_width=None)] if wide else []
    columns += [TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="crop"))]
    columns += [TextColumn("left"), TimeRemainingColumn(compact=True, elapsed_when_finished=False)]
    bar = Progress(*columns, refresh_per_second=5, expand=wide, redirect_stdout=False, redirect_stderr=False)
    task = bar.add_task("train", total=horizon, completed=done, figures="")
    bar.start()
    return bar, task
