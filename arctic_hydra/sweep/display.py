"""What a person sees while jobs run: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from arctic_hydra.human_numbers import format_seconds
from arctic_hydra.sweep import results
from arctic_hydra.sweep.directory import FINISHED, RUNNING, Sweep, SweepJob
from arctic_hydra.sweep.results import Row

_STYLES = {
    "finished": "green",
    "running": "cyan",
    "failed": "red",
    "died": "red",
    "stopped": "yellow",
    "pruned": "magenta",
}


class Board:
    """The jobs of a sweep under way, on standard output."""

    def __init__(self, sweep: Sweep, *, live: bool) -> None:
        self._sweep = sweep
        self._live: Any = None
        self._wanted = live and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._rows: dict[int, Row] = {}
        self._began: dict[int, float] = {}

    def __enter__(self) -> Board:
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

    def starts(self, entry: SweepJob) -> None:
        """Show that a job starts."""
        row = self._rows[entry.number]
        row.state, row.reason, row.seconds = RUNNING, "", None
        self._began[entry.number] = time.monotonic()
        values = " ".join(f"{key}={value}" for key, value in row.values.items()) or " ".join(entry.overrides)
        self._say(f"job {entry.number} of {len(self._rows)} starts: {values or 'the defaults'}")

    def moved(self, entry: SweepJob, logged: list[dict[str, Any]]) -> None:
        """Take in what a job has logged."""
        results.add_metrics(self._rows[entry.number], logged)

    def ends(self, entry: SweepJob) -> None:
        """Show how a job ended, or that there was nothing to start."""
        began = self._began.pop(entry.number, None)
        row = next(row for row in results.rows(self._sweep) if row.number == entry.number)
        self._rows[entry.number] = row
        objective = "" if row.objective is None else f", objective {row.objective:.4f}"
        took = " already" if began is None and row.state == FINISHED else ""
        took = took if began is None else f" after {format_seconds(time.monotonic() - began)}"
        why = f": {row.last_line}" if row.last_line else ""
        self._say(f"job {entry.number} {row.state}{took}{objective}{why}")

    def refresh(self) -> None:
        """Draw the live table anew."""
        if self._live is not None:
            for number, began in self._began.items():
                row = self._rows[number]
                row.seconds = time.monotonic() - began
                row.horizon = row.horizon or self._sweep_job(number).directory.record().get("horizon")
            self._live.update(rich_table(list(self._rows.values())))

    def _sweep_job(self, number: int) -> SweepJob:
        return next(job for job in self._sweep.jobs if job.number == number)

    def _say(self, text: str) -> None:
        if self._live is None:
            print(text, flush=True)


def rich_table(table: Sequence[Row]) -> Any:
    """Return the jobs as a table in colour; of a long sweep, those that run, and the ends of the list."""
    from rich.table import Table
    from rich.text import Text

    keys = results.keys_of(table)
    names = results.short_names(keys)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (*results.HEADINGS, "loss", *(names[key] for key in keys)):
        right = heading in ("job", "objective", "step", "minutes", "loss")
        shown.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for row in table:
        cells = results.cells(row, keys)
        cells.insert(len(results.HEADINGS), "" if row.loss is None else f"{row.loss:.4f}")
        shown.add_row(
            *(Text(cell, style=_STYLES.get(row.state, "")) if n == 1 else Text(cell) for n, cell in enumerate(cells))
        )
    return shown
