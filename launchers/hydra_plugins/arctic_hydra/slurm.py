"""`hydra/launcher=slurm`: every job of a sweep, or a single run, as a job of a SLURM cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra_plugins.arctic_hydra import _slurm_conf as _slurm_conf  # stores the options

if TYPE_CHECKING:
    from arctic_hydra.job import Job
    from arctic_hydra.sweep.directory import SweepJob
    from arctic_hydra.sweep.slurm import JobState

SETTLE_SECONDS = 15
"""How long a run's own record may lag behind SLURM's word that the job is over: shared file systems cache."""


class SlurmLauncher(Launcher):  # type: ignore[misc]
    """Submits jobs as one array, waits for them while saying what becomes of them, and returns their objectives."""

    def __init__(self, **options: Any) -> None:
        from arctic_hydra.component import to_plain

        self._options: dict[str, Any] = {key: to_plain(value) for key, value in options.items()}

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take what conducts the sweep; raises ConfigError where nothing can be submitted from this machine."""
        from hydra_plugins.arctic_hydra import _slurm_submit

        self._conductor = getattr(task_function, "conductor", task_function)
        if not self._options["dry_run"]:
            _slurm_submit.check_sbatch()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit a batch of jobs; wait for them unless detached."""
        from hydra_plugins.arctic_hydra import _slurm_submit

        sweep = self._conductor.sweep
        options = {**self._options, "folder": str(Path(self._options["folder"] or sweep.path / "slurm").absolute())}
        options["name"] = options["name"] or sweep.name
        if options["dry_run"]:
            limit = options["max_array_size"] or _slurm_submit.array_limit()
            for chunk in _slurm_submit.chunks(list(map(str, job_overrides)), limit):
                print(_slurm_submit.script(options, len(chunk)))
            self._conductor.detached = True
            return [_returned(overrides, None) for overrides in job_overrides]
        pairs = self._conductor.enter(job_overrides, initial_job_idx)
        submitted = self._submit(options, pairs)
        if options["detach"]:
            self._conductor.detached = True
        elif submitted:
            self._conductor.detached = not Watch(submitted, options["poll_seconds"]).wait()
        if self._conductor.detached:
            return [_returned(overrides, None) for overrides in job_overrides]
        return [_returned(entry.overrides, self._conductor.value(entry)) for entry, _ in pairs]

    def _submit(self, options: dict[str, Any], pairs: Sequence[tuple[SweepJob, Job]]) -> list[SweepJob]:
        """Submit what is neither finished nor under way; return the jobs to wait for."""
        from hydra_plugins.arctic_hydra import _slurm_submit

        from arctic_hydra import record
        from arctic_hydra.errors import ArcticHydraError

        to_submit, under_way = [], self._under_way(pairs)
        for entry, job in pairs:
            if entry.number not in under_way and self._prepare(entry, job):
                to_submit.append((entry, job))
        for entry in under_way.values():
            print(f"job {entry.number} is in the queue already, as {_job_id(entry)}")
        secrets = {entry.run_dir: hidden for entry, job in to_submit if (hidden := job.secrets())}
        waiting = iter([entry for entry, _ in to_submit])
        try:
            for submission in _slurm_submit.submit(options, [entry.run_dir for entry, _ in to_submit], secrets):
                entry = next(waiting)
                entry.submission = submission
                entry.directory.update_record(submission=submission)
                print(
                    f"job {entry.number} submitted as {submission['job_id']}: {' '.join(entry.overrides)}", flush=True
                )
        except ArcticHydraError as error:
            for entry in waiting:
                entry.problem = str(error)
                entry.directory.update_record(status=record.FAILED, error=str(error))
            raise
        finally:
            self._conductor.sweep.save()
        return [entry for entry, _ in pairs if entry.submission and not entry.problem]

    def _under_way(self, pairs: Sequence[tuple[SweepJob, Job]]) -> dict[int, SweepJob]:
        """Return the jobs that an earlier start of this sweep submitted and that SLURM still has."""
        from arctic_hydra.sweep import slurm

        asked = [entry for entry, _ in pairs if entry.submission and entry.submission["kind"] == "slurm"]
        states = slurm.query([_job_id(entry) for entry in asked]) if asked else {}
        return {entry.number: entry for entry in asked if not states[_job_id(entry)].over}

    def _prepare(self, entry: SweepJob, job: Job) -> bool:
        """Write what the job's ranks will read; return whether there is anything to do."""
        from arctic_hydra.errors import ConfigError

        entry.problem, entry.submission = "", None
        if problems := job.run.environment_problems():
            raise ConfigError(problems)
        data = job.data_digest()
        job.open()
        finished = job.finished(data)
        if not finished:
            job.write(data)
        job.directory.release()
        if finished:
            print(f"job {entry.number} is finished already: {entry.run_dir}")
        return not finished


class Watch:
    """Waits for submitted jobs, and says how they get on."""

    def __init__(self, entries: Sequence[SweepJob], poll_seconds: float) -> None:
        self._entries = list(entries)
        self._poll_seconds = poll_seconds

    def wait(self) -> bool:
        """Return True once all jobs are over, False where the person would rather not wait."""
        print("Ctrl-C stops the waiting, not the jobs", flush=True)
        try:
            self._watch()
        except KeyboardInterrupt:
            print("\nthe jobs go on; the same command waits for them again, `scancel` ends them")
            return False
        return True

    def _watch(self) -> None:
        from arctic_hydra.sweep import slurm

        told: dict[int, str] = {}
        waiting = self._entries
        silent = False
        while waiting:
            try:
                states = slurm.query([_job_id(entry) for entry in waiting])
            except slurm.SlurmError as error:
                if not silent:
                    print(f"SLURM does not answer, asking again: {error}", flush=True)
                silent = True
                time.sleep(self._poll_seconds)
                continue
            silent = False
            for entry in waiting:
                state = states[_job_id(entry)]
                text = _settle(entry, state) if state.over else str(state)
                if told.get(entry.number) != text:
                    print(f"job {entry.number} ({_job_id(entry)}): {text}", flush=True)
                    told[entry.number] = text
            waiting = [entry for entry in waiting if not states[_job_id(entry)].over]
            if waiting:
                time.sleep(self._poll_seconds)


def _settle(entry: SweepJob, state: JobState) -> str:
    """Return how a job ended; one that could not write that down itself is recorded as failed in SLURM's words."""
    from arctic_hydra import record

    end = time.monotonic() + SETTLE_SECONDS
    killed = state.state != "COMPLETED"
    while (status := entry.directory.record()["status"]) == record.RUNNING and time.monotonic() < end:
        time.sleep(0.5)
        if killed and time.monotonic() > end - SETTLE_SECONDS + 3:
            break
    if status == record.RUNNING:
        entry.directory.update_record(status=record.FAILED, error=f"SLURM: {state}")
        status = record.FAILED
    if status == record.FAILED:
        error = entry.directory.record().get("error", "")
        assert entry.submission is not None
        return "\n  ".join([f"failed: {error}", *_last_lines(Path(entry.submission["logs"][-1]))])
    return str(status)


def _last_lines(path: Path, count: int = 5) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [f"{path}:", *lines[-count:]] if lines else [f"{path} is empty"]


def _job_id(entry: SweepJob) -> str:
    assert entry.submission is not None, "only submitted jobs are asked for"
    return str(entry.submission["job_id"])


def _returned(overrides: Sequence[str], value: float | None) -> JobReturn:
    returned = JobReturn()
    returned.overrides, returned.status, returned.return_value = list(overrides), JobStatus.COMPLETED, value
    return returned
