"""`hydra/launcher=slurm`: runs a sweep, or a single run, as jobs of a SLURM cluster."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.arctic_hydra import _slurm_conf as _slurm_conf  # stores the options
from hydra_plugins.arctic_hydra.sweep_launcher import SweepLauncher
from omegaconf import DictConfig

if TYPE_CHECKING:
    from arctic_hydra.launch.job import Job
    from arctic_hydra.sweep.controller import SweepController
    from arctic_hydra.sweep.directory import SweepJob
    from arctic_hydra.sweep.slurm import JobState

RECORD_LAG_SECONDS = 5
"""How long a run's record may lag behind the state in SLURM, because shared file systems cache."""

PROGRESS_SECONDS, PROGRESS_JOBS = 30.0, 8
"""Interval at which step and loss of a job are printed, and the maximum number of waiting jobs for which they are."""


class SlurmLauncher(SweepLauncher):
    """Submits jobs as arrays, waits for them while printing their states, and returns their objectives."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._snapshot: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the controller; folder and name of the jobs default to those of its sweep."""
        from hydra_plugins.arctic_hydra import _slurm_submit

        from arctic_hydra.errors import ConfigError

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        sweep = self.controller.sweep
        if sweep.kind == "search":
            for key in ("detach", "dry_run"):
                if self._options[key]:
                    raise ConfigError(
                        f"hydra.launcher.{key}: a search waits for results to choose the next values; remove it"
                    )
        folder = self._options["folder"] or sweep.path / "slurm"
        self._options |= {"folder": str(Path(folder).absolute()), "name": self._options["name"] or sweep.name}
        self._snapshot = _slurm_submit.Snapshot()
        if not self._options["dry_run"]:
            _slurm_submit.check_sbatch()
            _slurm_submit.check_sweep(sweep.path)
            _slurm_submit.script(self._options, 1)  # before any run is written

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Register the jobs, submit them, wait for them, and return their objectives in order."""
        if not self._options["dry_run"]:
            return super().launch(job_overrides, initial_job_idx)
        self._print_scripts([self.controller.job(item) for item in job_overrides])
        return [JobReturn(overrides=list(item), status=JobStatus.COMPLETED) for item in job_overrides]

    def _print_scripts(self, jobs: Sequence[Job]) -> None:
        from hydra_plugins.arctic_hydra import _slurm_submit

        from arctic_hydra import run_directory

        wanted = [job for job in jobs if job.directory.record().get("status") != run_directory.FINISHED]
        if len(wanted) < len(jobs):
            print(f"# {len(jobs) - len(wanted)} of {len(jobs)} jobs are finished already")
        limit = self._options["max_array_size"] or _slurm_submit.array_limit()
        secrets = {str(job.directory.path): job.secrets() for job in wanted}
        for array in _slurm_submit.arrays(list(secrets), limit, secrets):
            print(_slurm_submit.script(self._options, len(array)))

    def run(self, pairs: Sequence[tuple[SweepJob, Job]]) -> None:
        """Submit the jobs that are neither finished nor queued, and wait unless detached."""
        self._submit(pairs)
        waiting = [entry for entry, _ in pairs if entry.submission and not entry.problem]
        if self._options["detach"]:
            print("detached; manage the jobs with")
            print(f"  python -m arctic_hydra.sweep status {shlex.quote(str(self.controller.sweep.path))}")
            self.controller.detached = True
        elif not JobWatcher(self.controller, self._options).wait(waiting):
            self.controller.detached = self.controller.stopped_waiting = True

    def _submit(self, pairs: Sequence[tuple[SweepJob, Job]]) -> None:
        from hydra_plugins.arctic_hydra import _slurm_submit

        from arctic_hydra import run_directory
        from arctic_hydra.errors import ArcticHydraError
        from arctic_hydra.sweep import slurm
        from arctic_hydra.sweep.directory import PRUNED

        sweep = self.controller.sweep
        slurm.cancel_orphans(sweep, {self._options["folder"]})
        under_way = self._already_queued([entry for entry, _ in pairs])
        for entry in under_way:
            print(f"job {entry.number} is in the queue already, as {_job_id(entry)}")
        wanted = [(entry, job) for entry, job in pairs if entry not in under_way and entry.mark != PRUNED]
        new = [(entry, job) for entry, job in wanted if self._write_run_files(entry, job)]
        secrets = {entry.run_dir: hidden for entry, job in new if (hidden := job.secrets())}
        sweep.save()  # with the problems of jobs that cannot run
        waiting = [entry for entry, _ in new]
        run_dirs = [entry.run_dir for entry in waiting]
        try:
            for submissions in _slurm_submit.submit(self._options, run_dirs, secrets, sweep.path, self._snapshot):
                slurm.record_submissions(sweep, list(zip(waiting, submissions, strict=False)))
                waiting = waiting[len(submissions) :]
        except ArcticHydraError as error:
            for entry in waiting:
                entry.problem = str(error)
                entry.directory.update_record(status=run_directory.FAILED, error=str(error))
            sweep.save()
            raise

    def _already_queued(self, entries: Sequence[SweepJob]) -> list[SweepJob]:
        """Return the jobs that are in SLURM already, submitted by an earlier start or by another sweep with the same run."""
        from arctic_hydra.sweep import slurm

        found = [(entry, _submissions(entry)) for entry in entries]
        asked = [slurm.job_id(submission) for _, submissions in found for submission in submissions]
        states = slurm.query(asked) if asked else {}
        under_way = []
        for entry, submissions in found:
            alive = [submission for submission in submissions if not states[slurm.job_id(submission)].over]
            if alive:
                entry.submission, entry.problem = alive[-1], ""
                under_way.append(entry)
        return under_way

    def _write_run_files(self, entry: SweepJob, job: Job) -> bool:
        """Write the files that the job's ranks read; return whether the job has to be submitted."""
        from arctic_hydra.errors import ArcticHydraError

        entry.problem, entry.mark, entry.submission = "", "", None
        try:
            lock = job.write_unless_finished()
        except (ArcticHydraError, OSError) as error:
            entry.cannot_run(error)
            return False
        if lock is None:
            print(f"job {entry.number} is finished already")
            return False
        try:
            job.directory.update_record(submission=None)  # that of an earlier start
        except (ArcticHydraError, OSError) as error:
            entry.cannot_run(error)
            return False
        finally:
            job.directory.release()  # the job locks it itself
        return True


class JobWatcher:
    """Waits for submitted jobs, and prints their progress."""

    def __init__(self, controller: SweepController, options: dict[str, Any]) -> None:
        self._controller = controller
        self._poll_seconds: float = options["poll_seconds"]
        self._printed: dict[int, str] = {}
        self._next_progress: dict[int, float] = {}
        self._unanswered = False
        self._to_cancel: list[SweepJob] = []
        """Pruned jobs that SLURM has not been asked to cancel yet."""

    def wait(self, entries: Sequence[SweepJob]) -> bool:
        """Return True after all jobs have ended, False after Ctrl-C.

        Cancels the jobs if the controller raises ConfigError.
        """
        from arctic_hydra.errors import ConfigError
        from arctic_hydra.sweep import slurm
        from arctic_hydra.sweep.directory import PRUNED
        from arctic_hydra.sweep.tail import Tail

        asked_to_end = False
        tails = {entry.number: Tail(entry.directory.path / "metrics.jsonl") for entry in entries}
        waiting = list(entries)
        self._to_cancel = [entry for entry in entries if entry.mark == PRUNED]  # left by a killed process
        try:
            while waiting:
                waiting = self._poll(waiting)
                for entry in waiting:
                    rows = tails[entry.number].new_rows()
                    if len(waiting) <= PROGRESS_JOBS:
                        self._print_progress(entry, rows)
                    if rows and self._controller.process_metrics(entry, rows):
                        self._prune(entry)
                self._cancel_pruned()
                if waiting and not asked_to_end and self._controller.over:
                    with suppress(slurm.SlurmError):  # else try again at the next poll
                        slurm.cancel(self._controller.sweep, waiting)
                        asked_to_end = True
                if waiting:
                    time.sleep(self._poll_seconds)
        except ConfigError:
            try:
                slurm.cancel(self._controller.sweep, waiting)
            except slurm.SlurmError as error:
                print(f"the jobs were not cancelled: {error}. To cancel them:")
                self._print_cancel()
            raise
        except KeyboardInterrupt:
            print(
                "\nstopped waiting; the jobs keep running, and the same command waits for them again. To cancel them:"
            )
            self._print_cancel()
            return False
        return True

    def _print_cancel(self) -> None:
        print(f"  python -m arctic_hydra.sweep cancel {shlex.quote(str(self._controller.sweep.path))}")

    def _print_progress(self, entry: SweepJob, rows: Sequence[dict[str, Any]]) -> None:
        steps = [row for row in rows if row.get("loss") is not None]
        if steps and time.monotonic() >= self._next_progress.get(entry.number, 0.0):
            self._next_progress[entry.number] = time.monotonic() + PROGRESS_SECONDS
            print(f"job {entry.number}: step {steps[-1]['step']}, loss {steps[-1]['loss']:.4f}", flush=True)

    def _poll(self, waiting: list[SweepJob]) -> list[SweepJob]:
        """Print state changes; return the jobs that have not ended."""
        from arctic_hydra.sweep import slurm

        try:
            states = slurm.query([_job_id(entry) for entry in waiting])
        except slurm.SlurmError as error:
            if not self._unanswered:
                print(f"SLURM does not respond; retrying: {error}", flush=True)
            self._unanswered = True
            return waiting
        self._unanswered = False
        record_lost_endings(waiting, states)
        for entry in waiting:
            state = states[_job_id(entry)]
            text = describe_ending(entry) if state.over else str(state)
            if self._printed.get(entry.number) != text:
                self._printed[entry.number] = text
                print(f"job {entry.number} ({_job_id(entry)}): {text}", flush=True)
        return [entry for entry in waiting if not states[_job_id(entry)].over]

    def _prune(self, entry: SweepJob) -> None:
        from arctic_hydra.sweep.directory import PRUNED

        entry.mark = PRUNED
        self._controller.sweep.save()
        self._to_cancel.append(entry)

    def _cancel_pruned(self) -> None:
        from arctic_hydra.sweep import slurm

        if self._to_cancel:
            with suppress(slurm.SlurmError):  # else try again at the next poll
                slurm.cancel(self._controller.sweep, self._to_cancel)
                self._to_cancel = []


def record_lost_endings(entries: Sequence[SweepJob], states: dict[str, JobState]) -> None:
    """Record the end of runs whose jobs have ended without recording it: killed, or never started."""
    from arctic_hydra import run_directory

    def unsettled() -> list[SweepJob]:
        over = [entry for entry in entries if states[_job_id(entry)].over]
        return [entry for entry in over if _was_left_running(entry)]

    end = time.monotonic() + RECORD_LAG_SECONDS
    while (rest := unsettled()) and time.monotonic() < end:
        time.sleep(0.2)
    for entry in rest:
        state = states[_job_id(entry)]
        if state.state in ("CANCELLED", "PREEMPTED"):  # it was asked to stop
            entry.directory.update_record(status=run_directory.STOPPED)
        else:
            entry.directory.update_record(status=run_directory.FAILED, error=f"SLURM: {state}")


def _was_left_running(entry: SweepJob) -> bool:
    """Whether a run's record says that this job is running it, although no process is."""
    from arctic_hydra import run_directory

    found = entry.directory.record()
    theirs = found.get("submission") or entry.submission or {}
    mine = theirs.get("job_id") == _job_id(entry)
    return found.get("status") == run_directory.RUNNING and mine and entry.directory.holder() is None


def describe_ending(entry: SweepJob) -> str:
    """Return how a job ended, with the last lines of its log if it failed."""
    from arctic_hydra import run_directory
    from arctic_hydra.errors import StateFileError, printable
    from arctic_hydra.files.state_file import last_lines

    found = entry.directory.record()
    if found.get("status") != run_directory.FAILED:
        return str(found.get("status"))
    assert entry.submission is not None, "only submitted jobs are waited for"
    lines = []
    for log in entry.submission["logs"][-1:]:
        try:
            lines = [f"{log}:", *last_lines(Path(log), 5)]
        except StateFileError as error:
            lines = [str(error)]
    why = found.get("error", "its record does not say why")
    return "\n    ".join(map(printable, [f"failed: {why}", *lines]))


def _submissions(entry: SweepJob) -> list[dict[str, Any]]:
    """Return the submissions that may run an entry: the sweep's, then the one in the run's record."""
    from arctic_hydra.sweep.directory import submission_problem

    found = [entry.submission, entry.directory.record().get("submission")]
    slurm = [submission for submission in found if submission and submission["kind"] == "slurm"]
    return [submission for submission in slurm if submission_problem(submission, "submission") is None]


def _job_id(entry: SweepJob) -> str:
    from arctic_hydra.sweep import slurm

    assert entry.submission is not None, "only submitted jobs are queried"
    return slurm.job_id(entry.submission)
