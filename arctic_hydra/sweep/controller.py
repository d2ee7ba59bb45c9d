"""The controller of a sweep: registers its jobs, which a launcher runs, and evaluates their results.

Hydra passes a `SweepController` to the launcher as its task function; our launchers call its `enter`, `run` and `value`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from arctic_hydra import metrics
from arctic_hydra.errors import ConfigError
from arctic_hydra.launch.fork_server import ForkServer
from arctic_hydra.launch.job import Job
from arctic_hydra.run_directory import relative
from arctic_hydra.sweep import pool
from arctic_hydra.sweep.directory import FINISHED, PRUNED, Sweep, SweepJob, states

Observer = Callable[[SweepJob, list[dict[str, Any]]], bool]
"""Receives new lines of a running job's `metrics.jsonl`; returns True to prune the job."""

_STEPS_WITHOUT_OBJECTIVE = 20
"""After so many logged steps an objective counts as one that is never logged; a callback may log it at a few steps only."""


class SweepController:
    """Controls one sweep; `jobs` are the jobs composed so far, by overrides."""

    def __init__(
        self,
        sweep: Sweep,
        compose_job: Callable[[list[str]], Job],
        jobs: dict[tuple[str, ...], Job],
        slots: pool.Slots,
        directory_key: str = "output_root",
    ) -> None:
        """`directory_key` is the config key that determines the sweep's directory, for error messages."""
        self.sweep = sweep
        self.slots = slots
        self.observer: Observer | None = None
        """Set by a sweeper that prunes."""
        self.stop_reason = ""
        """Why no further job is started, such as a signal."""
        self.detached = False
        """Whether the jobs continue without this process; set by the launcher."""
        self.stopped_waiting = False
        """Whether that is because of an interrupt; set by the launcher."""
        self._objective_is_logged = False
        self._without_objective: Counter[int] = Counter()
        """Logged steps without the objective, by job."""
        self._begun = False
        self._fork_server: ForkServer | None = None
        self._directory_key = directory_key
        self._compose = compose_job
        self._jobs = jobs

    def begin(self) -> None:
        """Lock the sweep's directory and load its earlier jobs; a second call does nothing.

        Sweepers call it after checking their settings, so that an invalid sweep writes nothing. Raises the errors of
        `Sweep.lock`.
        """
        if self._begun:
            return
        self.sweep.lock(self._directory_key)
        if self.sweep.file.exists():
            self.sweep.jobs = Sweep.load(self.sweep.path).jobs
        self.sweep.save()  # before any other file, so that the directory is known to be the sweep's
        self._begun = True
        print(f"sweep {relative(self.sweep.path)}", flush=True)

    @property
    def over(self) -> bool:
        """Whether this process starts no further jobs: stopped, cancelled or detached."""
        if not self.stop_reason and self.sweep.is_cancelled:
            self.stop_reason = "cancelled"
        return bool(self.stop_reason) or self.detached

    def job(self, overrides: Sequence[str]) -> Job:
        """Return the job of these overrides, composed once, so that later edits of config files do not affect it."""
        key = tuple(overrides)
        if key not in self._jobs:
            self._jobs[key] = self._compose(list(key))
        return self._jobs[key]

    def register(self, wanted: Sequence[tuple[int, Sequence[str]]]) -> list[tuple[SweepJob, Job]]:
        """Write numbered jobs into `sweep.json`, keeping the submissions of jobs that it contains already."""
        known = {entry.number: entry for entry in self.sweep.jobs}
        pairs = []
        for number, overrides in wanted:
            job = self.job(overrides)
            entry = known.get(number)
            if entry is None or entry.run_dir != str(job.directory.path):
                entry = SweepJob(number, job.overrides, str(job.directory.path), str(job.directory.run_file))
                known[number] = entry
            entry.overrides = job.overrides  # the same run may have been requested with other overrides before
            pairs.append((entry, job))
        self.sweep.jobs = [known[number] for number in sorted(known)]
        self.sweep.save()
        return pairs

    def run(
        self, pairs: Sequence[tuple[SweepJob, Job]], slots: pool.Slots, *, to_terminal: bool, forked: bool = True
    ) -> None:
        """Run registered jobs on this machine, and wait for them; `forked` jobs do not import the libraries again.

        With GPUs, each job is a new interpreter, since the CUDA driver does not support forks.
        """
        if forked and self._fork_server is None and any(job.run.ranks_per_node == 1 for _, job in pairs):
            self._fork_server = pool.fork_server()
        for entry, _ in pairs:
            entry.problem, entry.mark = "", entry.mark if entry.mark == PRUNED else ""
        work = [(entry, pool.starter(job)) for entry, job in pairs if entry.mark != PRUNED]
        jobs = pool.Pool(
            self.sweep, slots, self.process_metrics, to_terminal=to_terminal, fork_server=self._fork_server
        )
        self.stop_reason = jobs.run(work)

    def close(self) -> None:
        """Unlock the sweep's directory, and end the process that forks its jobs."""
        try:
            if self._fork_server:
                self._fork_server.close()
        finally:
            self.sweep.release()

    def process_metrics(self, entry: SweepJob, rows: list[dict[str, Any]]) -> bool:
        """Process the new metrics of a running job; return whether to prune it.

        Raises ConfigError as soon as the metrics show that the objective is never logged.
        """
        name = self.sweep.objective
        kind, allowed = ("eval/loss", 0) if name.startswith("eval/") else ("loss", _STEPS_WITHOUT_OBJECTIVE)
        for row in rows:
            self._objective_is_logged |= name in row
            self._without_objective[entry.number] += kind in row and name not in row
            if name != "auto" and not self._objective_is_logged and self._without_objective[entry.number] > allowed:
                near = ", ".join(sorted(key for key, value in row.items() if isinstance(value, float)))
                raise ConfigError(f"objective: got {name}, but the run logs no such metric; it logs {near}")
        return self.observer is not None and not entry.mark and self.observer(entry, rows)

    @property
    def composed(self) -> list[Job]:
        """The jobs composed so far, including those that only checked the bounds of a search."""
        return list(self._jobs.values())

    def value(self, entry: SweepJob) -> float | None:
        """Return the objective of a finished job, else None; records a problem if the run never logged one.

        NaN counts as infinitely bad, so that a search avoids the region; samplers ignore failed trials.
        """
        [(state, _)] = states(self.sweep, [entry])
        if state != FINISHED:
            return None
        value = objective(entry, self.sweep.objective)
        if value is None:
            entry.problem = missing_objective(entry, self.sweep.objective)
            self.sweep.save()
        elif math.isnan(value):
            return -math.inf if self.sweep.maximize else math.inf
        return value


def objective(entry: SweepJob, name: str) -> float | None:
    """Return a job's objective from its metrics, NaN if it diverged."""
    return metrics.objective(metrics.read_metrics(entry.directory.path / "metrics.jsonl"), name)


def note_missing_objectives(sweep: Sweep) -> None:
    """Mark finished jobs that never logged the objective; does not save, since another process may run the sweep."""
    for entry in sweep.jobs:
        if not entry.problem and entry.record().get("status") == FINISHED:
            entry.problem = (
                missing_objective(entry, sweep.objective) if objective(entry, sweep.objective) is None else ""
            )


def missing_objective(entry: SweepJob, name: str) -> str:
    """Return the message for a run without this metric, listing those it has."""
    rows = metrics.read_metrics(entry.directory.path / "metrics.jsonl")
    names = sorted({key for row in rows for key, value in row.items() if isinstance(value, float)})
    return f"objective: got {name}, but the run logged no such metric; it logged {', '.join(names) or 'nothing'}"


def refuse_duplicates(jobs: Sequence[tuple[Sequence[str], Job]]) -> None:
    """Raise ConfigError if two jobs of a grid are the same run."""
    seen: dict[str, tuple[int, Sequence[str]]] = {}
    problems = []
    for number, (overrides, job) in enumerate(jobs):
        path = str(job.directory.path)
        other, theirs = seen.setdefault(path, (number, overrides))
        if other == number:
            continue
        mine = " ".join(item for item in overrides if item not in theirs)
        before = " ".join(item for item in theirs if item not in overrides)
        which = f"job {number} ({mine}) and job {other} ({before})" if mine else f"job {number} and job {other}"
        what = mine or "a repeated value"
        problems.append(
            f"-m: {which} are the same run ({path}), because {what} does not affect training; remove one, or give them "
            "different names with name=<a>,<b>"
        )
    if problems:
        raise ConfigError(problems)
