"""The results of a sweep's jobs: rows, tables, `sweep.csv`, and the best job."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arctic_hydra import metrics
from arctic_hydra.errors import StateFileError, printable
from arctic_hydra.files.state_file import replace_text
from arctic_hydra.run_directory import PROGRAM, relative
from arctic_hydra.sweep.directory import FINISHED, PRUNED, Sweep, SweepJob, states
from arctic_hydra.sweep.tail import Tail


@dataclass
class Row:
    """One job in a table."""

    number: int
    state: str
    reason: str
    """Why it did not finish; may have several lines."""
    values: dict[str, str]
    """The values in which jobs differ, by key of the command line."""
    run_dir: Path
    objective: float | None = None
    """NaN if the last value is not finite; None if there is none (yet)."""
    metric: str = ""
    """The metric whose last value the objective is."""
    step: int | None = None
    horizon: int | None = None
    loss: float | None = None
    seconds: float | None = None

    @property
    def last_line(self) -> str:
        """The last line of the reason."""
        return printable(self.reason.strip().splitlines()[-1], keep="") if self.reason.strip() else ""

    @property
    def scored(self) -> bool:
        """Whether the job has a finite objective."""
        return self.objective is not None and math.isfinite(self.objective)


def rows(sweep: Sweep) -> list[Row]:
    """Return a row per job, from the files of the runs."""
    varied = varied_values(sweep)
    return [
        _row(sweep, job, state, reason, values)
        for job, (state, reason), values in zip(sweep.jobs, states(sweep), varied, strict=True)
    ]


def row(sweep: Sweep, job: SweepJob, values: dict[str, str]) -> Row:
    """Return the row of one job, with its `values` of another row."""
    [(state, reason)] = states(sweep, [job])
    return _row(sweep, job, state, reason, values)


def _row(sweep: Sweep, job: SweepJob, state: str, reason: str, values: dict[str, str]) -> Row:
    entry = job.record()
    row = Row(job.number, state, reason, values, Path(job.run_dir))
    row.horizon, row.seconds = entry.get("horizon"), entry.get("seconds")
    if entry:
        try:
            logged = metrics.read_metrics(row.run_dir / "metrics.jsonl")
        except StateFileError as error:
            row.reason = row.reason or str(error)
            return row
        add_metrics(row, logged)
        if state in (FINISHED, PRUNED):
            metric = metrics.logged_objective(logged, sweep.objective)
            row.objective, row.metric = metrics.objective(logged, metric), printable(metric, keep="")
    return row


def add_metrics(row: Row, logged: list[dict[str, object]]) -> None:
    """Update a row with the metrics that its job has logged."""
    for line in logged:
        if "loss" in line:
            row.step, row.loss = int(str(line["step"])), None if line["loss"] is None else float(str(line["loss"]))


def varied_values(sweep: Sweep) -> list[dict[str, str]]:
    """Return, for each job, the values of the keys in which jobs differ; the last value counts for a repeated key."""
    given = [_values(job.overrides) for job in sweep.jobs]
    # A search may have run a single job so far, or repeated a value; its command contains the keys that it searches.
    compared = [*given, _values(sweep.command)] if sweep.kind == "search" else given
    keys = {key for values in given for key in values}
    varied = {key for key in keys if len({values.get(key) for values in compared}) > 1}
    return [{key: value for key, value in values.items() if key in varied} for values in given]


def _values(overrides: Sequence[str]) -> dict[str, str]:
    """Return the values by key, with control characters as escapes: tables and plots show them on one line."""
    parts = (printable(item, keep="").partition("=") for item in overrides)
    return {key.lstrip("+"): value for key, _, value in parts}


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key, or more parts if they are ambiguous."""
    names: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other in (key, name) or other.endswith(f".{name}") for other in keys) == 1:
                break
        names[key] = name
    return names


def keys_of(table: Sequence[Row]) -> list[str]:
    """Return the keys of all rows, in order of appearance."""
    return list(dict.fromkeys(key for row in table for key in row.values))


def best(sweep: Sweep, table: Sequence[Row]) -> Row | None:
    """Return the finished row with the best objective, the first of equals; None if all diverged."""
    done = [row for row in table if row.state == FINISHED and row.scored]
    sign = -1.0 if sweep.maximize else 1.0
    return min(done, key=lambda row: sign * float(row.objective or 0.0), default=None)


def command(sweep: Sweep, number: int) -> str:
    """Return the command that repeats one job alone."""
    job = next(job for job in sweep.jobs if job.number == number)
    return shlex.join([*PROGRAM.split(), *job.overrides])


def cells(row: Row, keys: Sequence[str]) -> list[str]:
    """Return a row's cells: job, status, objective, step, minutes, each varied value."""
    objective = "" if row.objective is None else f"{row.objective:.4f}"
    step = "" if row.step is None else f"{row.step}/{row.horizon}" if row.horizon else str(row.step)
    minutes = "" if row.seconds is None else f"{row.seconds / 60:.1f}"
    return [str(row.number), row.state, objective, step, minutes, *(short(row.values.get(key, "")) for key in keys)]


def short(value: str) -> str:
    """Shorten a command-line value for a table: long numbers get five significant digits."""
    try:
        return f"{float(value):.5g}" if len(value) > 8 else value
    except ValueError:
        return value


HEADINGS = ("job", "status", "objective", "step", "minutes")


def text(sweep: Sweep, table: Sequence[Row]) -> str:
    """Return the table as plain text, with the last line of each failure and the best run's command below."""
    keys = keys_of(table)
    names = short_names(keys)
    lines = [[*HEADINGS, *(names[key] for key in keys), "directory"]]
    lines += [[*cells(row, keys), str(relative(row.run_dir))] for row in table]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    right = {0, 2, 3, 4}
    shown = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return printable("\n".join([*shown, *epilogue(sweep, table)]))


def epilogue(sweep: Sweep, table: Sequence[Row]) -> list[str]:
    """Return the lines below the table: the reasons of failures, and the best job."""
    lines = [
        f"job {row.number} {row.state}: {row.last_line}"
        for row in table
        if row.last_line and row.state not in (FINISHED, PRUNED)
    ]
    lines += [
        f"job {row.number} diverged: its last {row.metric} is not a finite number, which is worse than any other"
        for row in table
        if row.state == FINISHED and row.objective is not None and not row.scored
    ]
    if winner := best(sweep, table):
        better = "higher" if sweep.maximize else "lower"
        lines += [
            f"best: job {winner.number}, {winner.metric} {winner.objective:.4f} ({better} is better); repeat it with",
            f"  {command(sweep, winner.number)}",
        ]
    return lines


def write_csv(sweep: Sweep, table: Sequence[Row]) -> Path:
    """Write `sweep.csv` in the sweep's directory: one line per job, with its values under their full keys."""
    keys = keys_of(table)
    path = sweep.path / "sweep.csv"
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    heading = ["job", "status", "objective", "step", "horizon", "last_loss", "seconds", *keys]
    writer.writerow([*heading, "directory", "failure"])
    for row in table:
        figures = [row.objective, row.step, row.horizon, row.loss, row.seconds]
        values = [row.values.get(key, "") for key in keys]
        writer.writerow([row.number, row.state, *figures, *values, row.run_dir, row.last_line])
    replace_text(path, lines.getvalue())
    return path


def curve(row: Row) -> tuple[list[int], list[float]]:
    """Return steps and training losses of a job."""
    points = [
        (line["step"], line["loss"])
        for line in Tail(row.run_dir / "metrics.jsonl").new_rows()
        if line.get("loss") is not None
    ]
    return [step for step, _ in points], [loss for _, loss in points]
