"""The sweep's directory: `sweep.json`, its jobs, and their states.

{"format": 1, "id": "<hash>", "name": "<name>", "kind": "grid" | "search", "command": ["<override>", ...],
 "objective": "eval/loss", "maximize": false, "launcher": "local", "working_directory": "...",
 "jobs": [{"number": 0, "overrides": [...], "run_dir": "...", "run_file": "...",
           "submission": null | {"kind": "local", ...} | {"kind": "slurm", "job_id": "12_0", ...},
           "mark": "" | "pruned", "problem": ""}, ...]}
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from arctic_hydra import run_directory
from arctic_hydra.errors import ConfigError, StateFileError, printable
from arctic_hydra.files.lock_file import LockFile
from arctic_hydra.files.ownership import misplaced
from arctic_hydra.files.state_file import Schema, Table, absolute_path, at_least_0, mismatch, one_of, read_state
from arctic_hydra.launch.job import Job
from arctic_hydra.redaction import contains_secret, mask
from arctic_hydra.run_directory import RunDirectory

FORMAT = 1
WAITING, QUEUED, RUNNING, FINISHED = "waiting", "queued", run_directory.RUNNING, run_directory.FINISHED
STOPPED, PRUNED, FAILED, DIED = run_directory.STOPPED, "pruned", run_directory.FAILED, run_directory.DIED
UNKNOWN = "unknown"
"""State of a job while its backend does not respond."""
OVER = (FINISHED, PRUNED, FAILED, DIED, STOPPED)
"""States of jobs that neither run nor will run."""


JOB_ID = re.compile(r"\d{1,19}(_\d{1,10})?", re.ASCII)
"""The id of a job of SLURM, or of a job of an array."""


def _job_id(value: Any) -> str | None:
    fits = isinstance(value, str) and JOB_ID.fullmatch(value)
    return None if fits else "a job id of SLURM, such as 12_0"


def _slurm_log(value: Any) -> str | None:
    # submitit names them so; `logs` must not print any other file
    fits = absolute_path(value) is None and re.fullmatch(r"\d+(_\d+)+_log\.(out|err)", Path(value).name)
    return None if fits else "the path of a log of SLURM, such as /.../12_0_log.out"


_TEXTS = [str]
_JOB = Table(
    {"number": at_least_0, "overrides": _TEXTS, "run_dir": absolute_path, "run_file": str},
    {"submission": (Table({"kind": str}), None), "mark": one_of("", PRUNED), "problem": str},
)
_SUBMISSIONS = {
    "local": Table({"pid": at_least_0}, {"slots": at_least_0}),
    "slurm": Table({"job_id": _job_id, "logs": [_slurm_log], "launcher": dict}),
}
"""The fields of a submission of each kind, besides the kind."""
SWEEP_FILE = Schema(
    "restore the file, or delete it and repeat the sweep's command: finished jobs do not run again",
    Table(
        {
            "id": str,
            "name": str,
            "kind": one_of("grid", "search"),
            "command": _TEXTS,
            "objective": str,
            "maximize": bool,
            "launcher": str,
            "working_directory": str,
            "jobs": [_JOB],
        }
    ),
    formats=(FORMAT, FORMAT),
    max_bytes=512 << 20,
)
_JOB_FIELDS = {**_JOB.required, **_JOB.optional}


@dataclass
class SweepJob:
    """One job of a sweep, as stored in `sweep.json`."""

    number: int
    """Index in the sweep from 0; the trial number in a search."""
    overrides: list[str]
    """The job's complete overrides, with secrets hidden."""
    run_dir: str
    run_file: str
    submission: dict[str, Any] | None = None
    """Where it was submitted: `kind` names the backend, the rest belongs to the backend. None: not submitted yet."""
    mark: str = ""
    """`pruned` if the search stopped the job early; the status of its run is `stopped`."""
    problem: str = ""
    """Why the job could not be started, or has no objective; the record of a started run says how it ended."""

    @property
    def directory(self) -> RunDirectory:
        """The run's directory."""
        return RunDirectory(Path(self.run_dir))

    def record(self) -> dict[str, Any]:
        """Return the run's record; one that cannot be trusted counts as that of a failed run, for this reason."""
        try:
            return self.directory.record()
        except StateFileError as error:
            return {"status": FAILED, "error": str(error)}

    def cannot_run(self, error: Exception) -> None:
        """Mark the job as one that could not be started, and say why."""
        self.problem = str(error)
        print(f"job {self.number} failed: {printable(self.problem)}", flush=True)

    def reread(self) -> Job:
        """Return the job of a written `run.json`, to run it again.

        Raises ConfigError if the config contained secrets, which `run.json` omits, or if the machine cannot run it now.
        """
        if "***" in json.dumps(self.directory.config()):
            raise ConfigError(
                f"its config contains secrets, which {self.directory.run_file} omits; repeat the sweep's command to run the "
                "unfinished jobs"
            )
        job = Job.read(self.directory, self.overrides)
        if job is None:
            raise ConfigError(f"{self.directory.run_file}: is missing; repeat the sweep's command to run the job")
        if not job.is_in_its_directory:
            raise ConfigError(
                f"{self.directory.run_file}: describes another run than that of its directory; repeat the sweep's command"
            )
        if problems := job.run.environment_problems():
            raise ConfigError(problems)
        return job


@dataclass
class BackendState:
    """A job's state according to its backend."""

    state: str | None
    """`queued`, `running`, `unknown`, or None if the backend does not have the job (any more)."""
    reason: str = ""
    """The backend's reason for an end that the run itself could not record, such as OUT_OF_MEMORY."""


class Backend(Protocol):
    """The functions of the module `arctic_hydra.sweep.<kind>`, for jobs whose submission has that kind."""

    def backend_states(self, jobs: Sequence[SweepJob]) -> list[BackendState]:
        """Return the state of each job; one call for all, since a cluster is queried over the network."""

    def logs(self, job: SweepJob) -> list[Path]:
        """Return the job's log files, the most informative last."""

    def cancel(self, sweep: Sweep, jobs: Sequence[SweepJob]) -> int:
        """Ask the jobs to stop, as SIGTERM does, without waiting; return how many could not be asked, and print why."""

    def stop_controller(self, sweep: Sweep) -> bool:
        """Make the sweep process stop its jobs, start no others, and write the results; return whether it was asked."""

    def resubmit(self, sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
        """Rerun the jobs from their `run.json`, and write their new submissions into the sweep."""


def backend(kind: str) -> Backend:
    """Return the backend of a submission's kind; raises ConfigError for an unknown kind."""
    if kind not in _SUBMISSIONS:
        raise ConfigError(f"sweep.json: got submission kind {kind!r}, which this version does not support")
    return cast(Backend, importlib.import_module(f"arctic_hydra.sweep.{kind}"))


@dataclass
class Sweep:
    """A sweep's directory and the content of `sweep.json`; call `save` after changing a job."""

    path: Path
    id: str
    name: str
    kind: str
    """`grid` or `search`."""
    command: list[str]
    """The overrides of the command line, with secrets hidden."""
    objective: str
    maximize: bool
    launcher: str
    working_directory: str
    jobs: list[SweepJob] = field(default_factory=list)
    format: int = FORMAT

    def __post_init__(self) -> None:
        self._directory = RunDirectory(self.path)

    @property
    def command_line(self) -> str:
        """The shell command that starts the sweep."""
        return shlex.join([*run_directory.PROGRAM.split(), "-m", *self.command])

    @property
    def file(self) -> Path:
        """Path of `sweep.json`."""
        return self.path / "sweep.json"

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read a sweep from its directory; raises ConfigError if there is none, or one of an unsupported format."""
        try:
            values = read_state(path / "sweep.json", SWEEP_FILE)
        except StateFileError as error:
            raise ConfigError(str(error)) from error
        if values is None:
            inside = sorted(path.glob("sweeps/*/sweep.json"), key=os.path.getmtime)
            hint = f"; did you mean {inside[-1].parent}?" if inside else ""
            raise ConfigError(
                f"{path}: no sweep.json here; expected the directory of a sweep, outputs/<name>/sweeps/<id>{hint}"
            )
        jobs = [SweepJob(**{name: job[name] for name in _JOB_FIELDS if name in job}) for job in values["jobs"]]
        if problem := _job_problem(jobs):
            raise ConfigError(f"{path / 'sweep.json'}: {problem}; {SWEEP_FILE.remedy}")
        return cls(path=path, jobs=jobs, **{name: values[name] for name in SWEEP_FILE.table.required if name != "jobs"})

    def save(self) -> None:
        """Write `sweep.json` atomically."""
        values = asdict(self)
        del values["path"]
        for job in values["jobs"]:
            job["problem"] = mask(job["problem"])
        run_directory.write_json(self.file, values)

    def lock(self, key: str = "output_root") -> None:
        """Create the directory and lock it for this process; `key` is the config key of its path, for error messages.

        Raises ConfigError if it cannot be written or contains another sweep, RunLockedError if the sweep is running.
        """
        if contains_secret(self.path.name):
            raise ConfigError(f"{key}: the name of the sweep's folder contains a secret; choose another name")
        self._directory.create(key)
        if self._directory.run_file.exists():
            raise ConfigError(f"{key}: {self.path} is the directory of a run; choose another folder for the sweep")
        if problem := misplaced(self.path, files=(self.file.name, "cancelled", "sweep.csv", "sweep.html")):
            raise ConfigError(problem)
        others = [name for name in ("cancelled", "study.log", "sweep.csv", "sweep.html") if (self.path / name).exists()]
        if others and not self.file.exists():
            raise ConfigError(
                f"{key}: {self.path} contains {others[0]}, but no sweep; choose another folder for the sweep"
            )
        self._directory.lock(run_directory.LOCK_GRACE_SECONDS)
        self._cancelled.unlink(missing_ok=True)
        if self.file.exists() and (other := Sweep.load(self.path)).id != self.id:
            raise ConfigError(
                f"hydra.sweep.dir: got {self.path}, which contains another sweep ({other.command_line}); choose another "
                "folder, or remove hydra.sweep.dir: by default each sweep has its own folder in outputs/<name>/sweeps"
            )

    def release(self) -> None:
        """Release the lock, if this process holds it."""
        self._directory.release()

    @property
    def _cancelled(self) -> Path:
        return self.path / "cancelled"

    def request_cancellation(self) -> None:
        """Make the sweep process, on any machine, start no further jobs."""
        self._cancelled.touch()

    @property
    def is_cancelled(self) -> bool:
        """Whether the sweep has been cancelled since its process started."""
        return self._cancelled.exists()

    def owner(self) -> str | None:
        """Return the process that runs the sweep now (`process <pid> on <host>, since ...`), None if there is none."""
        return self.lock_file.holder()

    @property
    def lock_file(self) -> LockFile:
        """The lock that the sweep process holds."""
        return self._directory.lock_file


def _job_problem(jobs: Sequence[SweepJob]) -> str | None:
    """Return what is wrong with the numbers or the submissions of jobs that fit the schema, or None."""
    numbers = [job.number for job in jobs]
    if len(set(numbers)) < len(numbers):
        return f"jobs: got the numbers {numbers}, expected each once"
    for index, job in enumerate(jobs):
        if problem := submission_problem(job.submission, f"jobs.{index}.submission"):
            return problem
    return None


def submission_problem(submission: dict[str, Any] | None, where: str) -> str | None:
    """Return what is wrong with the fields of a submission, or None; kinds of other versions have unknown fields."""
    if submission is None or submission["kind"] not in _SUBMISSIONS:
        return None
    return mismatch(submission, _SUBMISSIONS[submission["kind"]], where)


def states(sweep: Sweep, jobs: Sequence[SweepJob] | None = None) -> list[tuple[str, str]]:
    """Return state and reason of each job, from the runs' own records and from the backends."""
    jobs = sweep.jobs if jobs is None else jobs
    found: dict[int, BackendState] = {}
    for kind in {job.submission["kind"] for job in jobs if job.submission}:
        mine = [job for job in jobs if job.submission and job.submission["kind"] == kind]
        found |= {job.number: item for job, item in zip(mine, backend(kind).backend_states(mine), strict=True)}
    return [_state(job, found.get(job.number, BackendState(None))) for job in jobs]


def _state(job: SweepJob, backend_state: BackendState) -> tuple[str, str]:
    entry = job.record()
    status = entry.get("status", WAITING)
    if backend_state.state is not None:
        return backend_state.state, backend_state.reason
    if job.problem and status != FINISHED:
        return FAILED, job.problem
    if status == RUNNING:  # or was, when the backend was asked and the record read
        if job.directory.holder():
            return RUNNING, ""
        entry = job.record()
        status = entry.get("status")
    if status == RUNNING:
        died = "died without reporting an error (killed, or its machine went down); start the sweep again"
        return DIED, backend_state.reason or died
    if status == STOPPED and job.mark == PRUNED:
        return PRUNED, ""
    if status == FINISHED and job.problem:
        return FAILED, job.problem
    return status, str(entry.get("error", backend_state.reason))
