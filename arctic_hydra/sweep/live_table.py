"""Progress of running jobs: a live table on a terminal, else a line per change."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from arctic_hydra.errors import printable
from arctic_hydra.human_numbers import format_seconds
from arctic_hydra.run_directory import relative
from arctic_hydra.sweep import results
from arctic_hydra.sweep.directory import FINISHED, QUEUED, RUNNING, WAITING, Sweep, SweepJob
from arctic_hydra.sweep.results import Row

_STYLES = {
    "finished": "green",
    "running": "cyan",
    "failed": "red",
    "died": "red",
    "stopped": "yellow",
    "pruned": "magenta",
}


class LiveTable:
    """Shows the jobs of a running sweep on standard output."""

    def __init__(self, sweep: Sweep, *, live: bool) -> None:
        self._sweep = sweep
        self._live: Any = None
        self._wanted = live and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._rows: dict[int, Row] = {}
        self._began: dict[int, float] = {}

    def __enter__(self) -> LiveTable:
        self._rows = {row.number: row for row in results.rows(self._sweep)}
        if self._wanted:
            from rich.live import Live

            self._live = Live(refresh_per_second=4, redirect_stderr=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def job_started(self, entry: SweepJob) -> None:
        """Show that a job has started."""
        row = self._rows[entry.number]
        row.state, row.reason, row.seconds = RUNNING, "", None
        self._began[entry.number] = time.monotonic()
        values = " ".join(f"{key}={value}" for key, value in row.values.items()) or " ".join(entry.overrides)
        self._say(f"job {entry.number} of {len(self._rows)} starts: {values or 'the defaults'}")

    def job_logged(self, entry: SweepJob, logged: list[dict[str, Any]]) -> None:
        """Update a job with the metrics it has logged."""
        results.add_metrics(self._rows[entry.number], logged)

    def job_ended(self, entry: SweepJob) -> None:
        """Show how a job ended, or that it was finished already."""
        began = self._began.pop(entry.number, None)
        row = self._rows[entry.number] = results.row(self._sweep, entry, self._rows[entry.number].values)
        objective = "" if row.objective is None else f", {row.metric} {row.objective:.4f}"
        duration = " already" if began is None and row.state == FINISHED else ""
        duration = duration if began is None else f" after {format_seconds(time.monotonic() - began)}"
        why = f": {row.last_line}" if row.last_line else ""
        self._say(f"job {entry.number} {row.state}{duration}{objective}{why}")

    def refresh(self) -> None:
        """Redraw the live table."""
        if self._live is not None:
            for number, began in self._began.items():
                row = self._rows[number]
                row.seconds = time.monotonic() - began
                row.horizon = row.horizon or self._sweep_job(number).directory.record().get("horizon")
            self._live.update(rich_table(list(self._rows.values()), self._live.console.height - 4))

    def _sweep_job(self, number: int) -> SweepJob:
        return next(job for job in self._sweep.jobs if job.number == number)

    def _say(self, text: str) -> None:
        if self._live is None:
            with suppress(OSError):  # whose reader has exited: the jobs go on
                print(printable(text), flush=True)


def most_relevant(table: Sequence[Row], lines: int) -> list[Row]:
    """Return at most `lines` rows in order, preferring running jobs, then ended ones, then waiting ones."""
    rank = {RUNNING: 0, QUEUED: 2, WAITING: 3}
    chosen = sorted(
        table, key=lambda row: (rank.get(row.state, 1), -row.number if row.state not in rank else row.number)
    )
    return sorted(chosen[: max(1, lines)], key=lambda row: row.number)


def rich_table(table: Sequence[Row], lines: int | None = None) -> Any:
    """Return the jobs as a table in color, with their directories.

    With `lines`, the table has only that many jobs and no directories; the caption counts the jobs by state.
    """
    from rich.table import Table
    from rich.text import Text

    shown = list(table) if lines is None else most_relevant(table, lines)
    keys = results.keys_of(table)
    names = results.short_names(keys)
    headings = [*results.HEADINGS, "loss"]
    body = [_with_loss(row, keys) for row in shown]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    if len(shown) < len(table):
        counts = Counter(row.state for row in table)
        drawn.caption = ", ".join(f"{count} {state}" for state, count in counts.items())
    for column, heading in enumerate([*headings, *(names[key] for key in keys)]):
        # A narrow terminal may truncate the parameters of a job, but not its state.
        width = max([len(heading), *(len(cells[column]) for cells in body)]) if column < len(headings) else None
        right = heading in headings and heading != "status"
        drawn.add_column(heading, justify="right" if right else "left", no_wrap=True, min_width=width)
    if lines is None:  # while jobs run, their parameters are more useful
        drawn.add_column("directory", overflow="fold")
        body = [[*cells, printable(str(relative(row.run_dir)))] for row, cells in zip(shown, body, strict=True)]
    for row, cells in zip(shown, body, strict=True):
        drawn.add_row(*(Text(cell, style=_STYLES.get(row.state, "") if n == 1 else "") for n, cell in enumerate(cells)))
    return drawn


def _with_loss(row: Row, keys: Sequence[str]) -> list[str]:
    cells = results.cells(row, keys)
    cells.insert(len(results.HEADINGS), "" if row.loss is None else f"{row.loss:.4f}")
    return cells
