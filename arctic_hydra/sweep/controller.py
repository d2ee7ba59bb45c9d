"""The process that conducts a sweep: enters its jobs, has a launcher run them, and says how they ended.

A `SweepController` takes the place of the task function that Hydra hands to a launcher; ours take its `enter`, `run` and `value`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from arctic_hydra import metrics
from arctic_hydra.errors import ConfigError
from arctic_hydra.launch.job import Job
from arctic_hydra.run_directory import relative
from arctic_hydra.sweep import pool
from arctic_hydra.sweep.directory import FINISHED, PRUNED, Sweep, SweepJob, states

Observer = Callable[[SweepJob, list[dict[str, Any]]], bool]
"""Sees the new lines of a running job's `metrics.jsonl`; True ends the job as pruned."""


class SweepController:
    """Conducts one sweep; `jobs` are those composed and checked already, by their overrides."""

    def __init__(
        self,
        sweep: Sweep,
        compose_job: Callable[[list[str]], Job],
        jobs: dict[tuple[str, ...], Job],
        slots: pool.Slots,
        directory_key: str = "output_root",
    ) -> None:
        """Take also the key that says where the sweep's directory is, for an error that names it."""
        self.sweep = sweep
        self.slots = slots
        self.observer: Observer | None = None
        """Set by a sweeper that prunes."""
        self.stop_reason = ""
        """Why no further job is started, such as a signal; set by the launcher."""
        self.detached = False
        """Whether the jobs go on without this process; set by the launcher."""
        self._begun = False
        self._directory_key = directory_key
        self._compose = compose_job
        self._jobs = jobs

    def begin(self) -> None:
        """Take the sweep's directory, and what it knows of jobs already; a second call does nothing.

        A sweeper calls it once its settings are checked: what is refused leaves nothing behind. Raises what `Sweep.lock`
        raises.
        """
        if self._begun:
            return
        self.sweep.lock(self._directory_key)
        if self.sweep.file.exists():
            self.sweep.jobs = Sweep.load(self.sweep.path).jobs
        self._begun = True
        print(f"sweep {relative(self.sweep.path)}", flush=True)

    @property
    def over(self) -> bool:
        """Whether no further job is to be started by this process: stopped, cancelled, or no longer waited for."""
        if not self.stop_reason and self.sweep.is_cancelled:
            self.stop_reason = "cancelled"
        return bool(self.stop_reason) or self.detached

    def job(self, overrides: Sequence[str]) -> Job:
        """Return the job of these overrides, composed once: a file edited meanwhile changes nothing."""
        key = tuple(overrides)
        if key not in self._jobs:
            self._jobs[key] = self._compose(list(key))
        return self._jobs[key]

    def enter(self, wanted: Sequence[tuple[int, Sequence[str]]]) -> list[tuple[SweepJob, Job]]:
        """Write numbered jobs into `sweep.json`, keeping what it knows of those that it has."""
        known = {entry.number: entry for entry in self.sweep.jobs}
        pairs = []
        for number, overrides in wanted:
            job = self.job(overrides)
            entry = known.get(number)
            if entry is None or entry.run_dir != str(job.directory.path):
                entry = SweepJob(number, job.overrides, str(job.directory.path), str(job.directory.run_file))
                known[number] = entry
            entry.overrides = job.overrides  # the same run may be asked for in other words than before
            pairs.append((entry, job))
        self.sweep.jobs = [known[number] for number in sorted(known)]
        self.sweep.save()
        return pairs

    def run(self, pairs: Sequence[tuple[SweepJob, Job]], slots: pool.Slots, *, to_terminal: bool) -> None:
        """Run entered jobs on this machine, and wait for them."""
        for entry, _ in pairs:
            entry.problem, entry.mark = "", entry.mark if entry.mark == PRUNED else ""
        work = [(entry, pool.starter(job)) for entry, job in pairs if entry.mark != PRUNED]
        self.stop_reason = pool.Pool(self.sweep, slots, self.look_at, to_terminal=to_terminal).run(work)

    def look_at(self, entry: SweepJob, rows: list[dict[str, Any]]) -> bool:
        """See what a running job has logged; return whether to prune it.

        Raises ConfigError as soon as it shows that the objective is none of the metrics that are logged.
        """
        name = self.sweep.objective
        kind = "eval/loss" if name.startswith("eval/") else "loss"
        for row in rows:
            if name != "auto" and kind in row and name not in row:
                near = ", ".join(sorted(key for key, value in row.items() if isinstance(value, float)))
                raise ConfigError(f"objective: got {name}, but the run logs no such metric; it logs {near}")
        return self.observer is not None and not entry.mark and self.observer(entry, rows)

    @property
    def composed(self) -> list[Job]:
        """The jobs composed so far, of a search those that tried its bounds too."""
        return list(self._jobs.values())

    def value(self, entry: SweepJob) -> float | None:
        """Return the objective of a finished job, None of any other; notes it where the run never logged one.

        One that is no number is infinitely bad: a search learns to stay away from there, as it would not from a failure.
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
    """Return a job's objective from what it has logged, NaN where it diverged."""
    return metrics.objective(metrics.read_metrics(entry.directory.path / "metrics.jsonl"), name)


def note_missing_objectives(sweep: Sweep) -> None:
    """Note which jobs finished and never logged the objective; saves nothing, since somebody else may conduct the sweep."""
    for entry in sweep.jobs:
        if not entry.problem and entry.directory.record().get("status") == FINISHED:
            entry.problem = (
                missing_objective(entry, sweep.objective) if objective(entry, sweep.objective) is None else ""
            )


def missing_objective(entry: SweepJob, name: str) -> str:
    """Say that a run has no such metric, and which it has."""
    rows = metrics.read_metrics(entry.directory.path / "metrics.jsonl")
    names = sorted({key for row in rows for key, value in row.items() if isinstance(value, float)})
    return f"objective: got {name}, but the run logged no such metric; it logged {', '.join(names) or 'nothing'}"


def refuse_duplicates(jobs: Sequence[tuple[Sequence[str], Job]]) -> None:
    """Raise ConfigError where two jobs of a grid are one and the same run."""
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
        what = mine or "the same value twice"
        problems.append(
            f"-m: {which} are the same run, {path}: {what} changes nothing in what is trained; leave one out, or give each a "
            "name of its own with name=<a>,<b>"
        )
    if problems:
        raise ConfigError(problems)
