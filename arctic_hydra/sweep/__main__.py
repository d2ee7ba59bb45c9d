"""Manages sweeps: `python -m arctic_hydra.sweep status|logs|cancel|retry|summary <outputs/<name>/sweeps/<id>>`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from arctic_hydra import entry_point
from arctic_hydra.errors import EXIT_DONE, ConfigError, printable
from arctic_hydra.files import code_file
from arctic_hydra.files.extensions import load_extensions
from arctic_hydra.files.state_file import last_lines
from arctic_hydra.human_numbers import quantity
from arctic_hydra.instantiate import trusted_keys
from arctic_hydra.run_directory import relative
from arctic_hydra.sweep import finish, results
from arctic_hydra.sweep.controller import note_missing_objectives
from arctic_hydra.sweep.directory import (
    DIED,
    FAILED,
    OVER,
    QUEUED,
    RUNNING,
    STOPPED,
    UNKNOWN,
    Sweep,
    SweepJob,
    backend,
    states,
)
from arctic_hydra.sweep.live_table import rich_table

WATCH_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv

    def run() -> int:
        load_extensions()
        options = _parser().parse_args(code_file.take(arguments))
        sweep = Sweep.load(Path(os.path.realpath(options.directory)))  # `resolve` raises for a link to itself
        return int(options.function(sweep, _chosen(sweep, options.job), options))

    return entry_point.exit_code(run, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m arctic_hydra.sweep", description="Manage a sweep, on this machine or on a cluster."
    )
    commands = parser.add_subparsers(required=True, metavar="status|logs|cancel|retry|summary")
    for function, text in (
        (status, "show the state of each job; --watch follows until all have ended; exits with the sweep's exit code"),
        (logs, "show the last lines of the logs of failed jobs, or of --job"),
        (cancel, "ask the jobs to save and stop"),
        (retry, "rerun jobs that failed, died or stopped, from their composed configs"),
        (summary, "write sweep.csv and sweep.html and group the MLflow runs, as at the end of the sweep"),
    ):
        command = commands.add_parser(function.__name__, help=text, description=text)
        command.add_argument("directory", type=Path, help="outputs/<name>/sweeps/<id>")
        command.set_defaults(function=function, job=None)
        if function is not summary:
            command.add_argument("--job", type=int, action="append", metavar="N", help="only this job; may be repeated")
        if function is status:
            command.add_argument("--watch", action="store_true", help="follow until all jobs have ended")
        if function is retry:
            text = "run code of models' repositories where the jobs' configs say so"
            command.add_argument("--trust-remote-code", action="store_true", help=text)
        if function is logs:
            command.add_argument("--lines", type=int, default=20, help="lines of each log (default 20)")
    return parser


def _chosen(sweep: Sweep, numbers: list[int] | None) -> list[SweepJob]:
    known = {job.number: job for job in sweep.jobs}
    if numbers and not known:
        raise ConfigError(f"--job: got {numbers[0]}, but the sweep has no jobs")
    if unknown := sorted(set(numbers or ()) - known.keys()):
        raise ConfigError(f"--job: got {unknown[0]}, but the sweep has the jobs {min(known)} to {max(known)}")
    return sweep.jobs if numbers is None else [known[number] for number in numbers]


def status(sweep: Sweep, jobs: list[SweepJob], options: argparse.Namespace) -> int:
    """Print the table of the jobs, with `--watch` after all have ended."""
    path, controller = sweep.path, sweep.owner()
    print(f"sweep {relative(path)}: {f'run by {controller}' if controller else 'no process runs it now'}")
    wanted = [job.number for job in jobs]
    if options.watch:
        _watch(path, wanted)
    sweep = Sweep.load(path)
    note_missing_objectives(sweep)
    table = [row for row in results.rows(sweep) if row.number in wanted]
    finish.show(sweep, table)
    return finish.exit_code(table)


def _watch(path: Path, wanted: list[int]) -> None:
    """Follow the jobs until none is known to wait or run: as a live table on a terminal, else with a line per change."""
    from rich.live import Live

    live = Live(refresh_per_second=2) if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else None
    before: dict[int, str] = {}
    if live:
        live.start()
    try:
        while True:
            sweep = Sweep.load(path)
            table = [row for row in results.rows(sweep) if row.number in wanted]
            if live:
                live.update(rich_table(table, live.console.height - 4))
            for row in table:
                if not live and before.get(row.number) != row.state:
                    print(f"job {row.number} {row.state}{f': {row.last_line}' if row.last_line else ''}", flush=True)
                before[row.number] = row.state
            if all(row.state in OVER for row in table) or not (
                sweep.owner() or any(row.state in (QUEUED, RUNNING, UNKNOWN) for row in table)
            ):
                return
            time.sleep(WATCH_SECONDS)
    finally:
        if live:
            live.stop()


def logs(sweep: Sweep, jobs: list[SweepJob], options: argparse.Namespace) -> int:
    """Print the last lines of the logs."""
    shown = jobs
    if options.job is None:
        shown = [job for job, (state, _) in zip(jobs, states(sweep, jobs), strict=True) if state in (FAILED, DIED)]
        if not shown:
            print("no job failed; choose one with --job N")
    for job in shown:
        if not job.submission:
            print(f"job {job.number} was never started{f': {printable(job.problem)}' if job.problem else ''}")
            continue
        logged = [path for path in backend(job.submission["kind"]).logs(job) if path.exists()]
        if not logged or job.directory.config() is None:
            print(f"job {job.number} has no log, because it has not started")
            continue
        path = logged[-1]
        lines = last_lines(path, options.lines)
        print(f"job {job.number}: {printable(str(path))}")
        for line in lines:
            print(f"  {printable(line)}")
    return EXIT_DONE


def cancel(sweep: Sweep, jobs: list[SweepJob], options: argparse.Namespace) -> int:
    """Ask the jobs to stop."""
    found = states(sweep, jobs)
    alive = [job for job, (state, _) in zip(jobs, found, strict=True) if state not in OVER]
    kind = _controller_kind(sweep) if options.job is None else ""
    if kind and backend(kind).stop_controller(sweep):
        print("asked the sweep process to start no further jobs")
    asked = 0
    for kind, group in groupby(sorted(alive, key=_kind), key=_kind):
        if kind:  # the others wait for the sweep process
            started = list(group)
            asked += len(started) - backend(kind).cancel(sweep, started)
    if asked:
        print(f"asked {quantity(asked, 'job')} to stop, which save{'s' * (asked == 1)} first")
    elif not alive:
        print("no job is waiting or running")
    elif not any(map(_kind, alive)):
        waiting = f"none of these jobs is queued or running; {len(alive)} wait{'s' * (len(alive) == 1)} for"
        if sweep.owner() is None:
            print(f"{waiting} the sweep's own command")
        elif options.job is not None:
            print(f"{waiting} the sweep process, which cancel without --job stops")
    return EXIT_DONE


def _controller_kind(sweep: Sweep) -> str:
    """Return the backend kind of the running sweep process, empty if there is none."""
    if sweep.owner() is None:
        return ""
    kinds = [_kind(job) for job in sweep.jobs if job.submission]
    return kinds[-1] if kinds else "slurm" if sweep.launcher == "slurm" else "local"


def retry(sweep: Sweep, jobs: list[SweepJob], options: argparse.Namespace) -> int:
    """Rerun jobs that did not finish."""
    sweep.lock()
    try:
        # As another command may have left them, whose end this one waited for.
        sweep.jobs, numbers = Sweep.load(sweep.path).jobs, {job.number for job in jobs}
        jobs = [job for job in sweep.jobs if job.number in numbers]
        again = [
            job
            for job, (state, _) in zip(jobs, states(sweep, jobs), strict=True)
            if state in (FAILED, DIED, STOPPED) and job.submission
        ]
        if not again:
            print("no job that was started failed, died or stopped; the sweep's own command starts the others")
        for job in again:
            job.problem = ""
            if (trusted := trusted_keys(job.directory.config() or {})) and not options.trust_remote_code:
                raise ConfigError(
                    f"job {job.number}: {trusted[0]} is true in {job.run_file}, which lets code of another repository run; pass "
                    "--trust-remote-code if you trust it"
                )
        for kind, group in groupby(sorted(again, key=_kind), key=_kind):
            backend(kind).resubmit(sweep, list(group))
        return finish.exit_code(finish.summarize(sweep, finish.jobs_of(sweep)))
    finally:
        sweep.release()


def summary(sweep: Sweep, jobs: list[SweepJob], options: argparse.Namespace) -> int:
    """Write the current results of the sweep."""
    return finish.exit_code(finish.summarize(sweep, finish.jobs_of(sweep)))


def _kind(job: SweepJob) -> str:
    return str(job.submission["kind"]) if job.submission else ""


if __name__ == "__main__":
    raise SystemExit(main())
