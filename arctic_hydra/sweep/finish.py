"""The end of a sweep: the table, `sweep.csv`, `sweep.html`, the MLflow runs, and the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from arctic_hydra import run_directory
from arctic_hydra.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED_EARLY, ArcticHydraError, printable
from arctic_hydra.launch.job import Job
from arctic_hydra.redaction import without_credentials
from arctic_hydra.sweep import page, results
from arctic_hydra.sweep.controller import SweepController, note_missing_objectives
from arctic_hydra.sweep.directory import DIED, FAILED, FINISHED, PRUNED, Sweep
from arctic_hydra.sweep.live_table import rich_table
from arctic_hydra.sweep.results import Row
from arctic_hydra.tracking.mlflow import MLflowTracker, SweepResult

_WORDS = {
    EXIT_DONE: run_directory.FINISHED,
    EXIT_STOPPED_EARLY: run_directory.STOPPED,
    EXIT_FAILED: run_directory.FAILED,
}


def finish_sweep(controller: SweepController) -> int:
    """Write and print the results of the sweep that this process ran; return its exit code."""
    sweep = controller.sweep
    if controller.detached:  # on request, the jobs of a grid continue alone; a search has not chosen its next jobs yet
        return EXIT_STOPPED_EARLY if sweep.kind != "grid" or controller.stopped_waiting else EXIT_DONE
    table = summarize(sweep, controller.composed)
    sweep.save()  # with the problems found in jobs
    if controller.stop_reason:
        fresh = any(job.run.fresh for job in controller.composed)
        again = "the same command without fresh=true, which would delete its runs," if fresh else "the same command"
        print(f"the sweep was stopped ({controller.stop_reason}); {again} resumes it")
    return exit_code(table)


def summarize(sweep: Sweep, jobs: Sequence[Job]) -> list[Row]:
    """Write the current results of a sweep, print the table, and return its rows."""
    note_missing_objectives(sweep)
    table = results.rows(sweep)
    show(sweep, table)
    written = [path for write in (results.write_csv, page.write) if (path := _write_or_warn(write, sweep, table))]
    if written:
        print("results: " + ", ".join(str(run_directory.relative(path)) for path in written))
    for tracker in jobs[0].run.tracking.values() if jobs else ():
        if isinstance(tracker, MLflowTracker):
            _group(sweep, table, tracker, jobs)
    return table


def _write_or_warn(write: Callable[[Sweep, Sequence[Row]], Path], sweep: Sweep, table: Sequence[Row]) -> Path | None:
    """Write one of the files; an error is printed as a warning, so that the other results are still written."""
    try:
        return write(sweep, table)
    except Exception as error:  # such as an unwritable folder, or a value that cannot be plotted
        first = (str(error).splitlines() or [""])[0]
        print(
            f"warning: {write.__module__} could not write its file in {sweep.path}: {type(error).__name__}: {printable(first)}",
            file=sys.stderr,
        )
        return None


def _group(sweep: Sweep, table: Sequence[Row], tracker: MLflowTracker, jobs: Sequence[Job]) -> None:
    """Create an MLflow run as the parent of the jobs' runs; an unreachable store is only a warning."""
    winner = results.best(sweep, table)
    tags = {"arctic_hydra.sweep": str(sweep.path.resolve())}
    if winner:
        tags |= {"arctic_hydra.best_job": str(winner.number), "arctic_hydra.best_run_dir": str(winner.run_dir)}
    ending = SweepResult(_WORDS[exit_code(table)], winner.objective if winner else None, tags)
    facts = {"command": sweep.command_line, "objective": sweep.objective, "maximize": sweep.maximize}
    children = [Path(job.run_dir) for job in sweep.jobs]

    def catch_up() -> None:
        for job in jobs:
            if (status := job.directory.record().get("status")) in (run_directory.FINISHED, run_directory.FAILED):
                job.update_trackers(status)

    try:
        tracker.group(sweep.path, f"{sweep.name}/sweep-{sweep.id}", facts, children, ending, catch_up)
    except Exception as error:  # any error of the client or server; the local files are complete
        first = (str(error).splitlines() or [type(error).__name__])[0]
        where = without_credentials(tracker.uri or "")
        print(
            f"warning: tracking.mlflow ({where}): cannot create the parent run of the sweep: {first}", file=sys.stderr
        )


def jobs_of(sweep: Sweep) -> list[Job]:
    """Return the jobs of a sweep whose `run.json` can be read and built."""
    found = []
    for entry in sweep.jobs:
        with suppress(
            ArcticHydraError
        ):  # of a damaged file, or of a component that has changed: its row says what it did
            found.append(Job.read(entry.directory, entry.overrides))
    return [job for job in found if job is not None]


def show(sweep: Sweep, table: Sequence[Row]) -> None:
    """Print the table: in color on a terminal, else as plain text."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        Console().print(rich_table(table))
        print(printable("\n".join(results.epilogue(sweep, table))))
    else:
        print(results.text(sweep, table))


def exit_code(table: Sequence[Row]) -> int:
    """Return 1 if any job failed, 75 if any is unfinished, else 0."""
    found = {row.state for row in table}
    if found & {FAILED, DIED}:
        return EXIT_FAILED
    return EXIT_DONE if found <= {FINISHED, PRUNED} else EXIT_STOPPED_EARLY
