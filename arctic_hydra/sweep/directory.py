"""The sweep's directory: `sweep.json`, its jobs, and their states.

{"format": 1, "id": "<hash>", "name": "<name>", "kind": "grid" | "search", "command": ["<override>", ...],
 "objective": "eval/loss", "maximize": false, "launcher": "local", "working_directory": "...",
 "jobs": [{"number": 0, "overrides": [...], "run_dir": "...", "run_file": "...",
           "submission": null | {"kind": "local", ...} | {"kind": "slurm", "job_id": "12_0", ...},
           "mark": "" | "pruned", "problem": ""}, ...]}
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from arctic_hydra import run_directory
from arctic_hydra.errors import ConfigError
from arctic_hydra.launch.job import Job
from arctic_hydra.redaction import contains_secret, mask
from arctic_hydra.run_directory import RunDirectory

FORMAT = 1
WAITING, QUEUED, RUNNING, FINISHED = "waiting", "queued", run_directory.RUNNING, run_directory.FINISHED
STOPPED, PRUNED, FAILED, DIED = run_directory.STOPPED, "pruned", run_directory.FAILED, "died"
UNKNOWN = "unknown"
"""State of a job while its backend does not respond."""
OVER = (FINISHED, PRUNED, FAILED, DIED, STOPPED)
"""States of jobs that neither run nor will run."""


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

    def reread(self) -> Job:
        """Return the job of a written `run.json`, to run it again.

        Raises ConfigError if the config contained secrets, which `run.json` omits, or if the machine cannot run it now.
        """
        if "***" in self.directory.run_file.read_text(encoding="utf-8"):
            raise ConfigError(
                f"its config contains secrets, which {self.directory.run_file} omits; repeat the sweep's command to run the "
                "unfinished jobs"
            )
        job = Job.read(self.directory, self.overrides)
        assert job is not None, "a started job has a run.json"
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

    def cancel(self, sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
        """Ask the jobs to stop, as SIGTERM does; does not wait for them."""

    def stop_controller(self, sweep: Sweep) -> None:
        """Make the sweep process stop its jobs, start no others, and write the results."""

    def resubmit(self, sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
        """Rerun the jobs from their `run.json`, and write their new submissions into the sweep."""


def backend(kind: str) -> Backend:
    """Return the backend of a submission's kind; raises ConfigError for an unknown kind."""
    try:
        return cast(Backend, importlib.import_module(f"arctic_hydra.sweep.{kind}"))
    except ModuleNotFoundError as error:
        raise ConfigError(f"sweep.json: got submission kind {kind!r}, which this version does not support") from error


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
            values = run_directory.read_json(path / "sweep.json")
        except ValueError as error:
            raise ConfigError(
                f"{path / 'sweep.json'}: not JSON ({error}); the file is damaged, or does not belong to a sweep"
            ) from error
        if not values:
            raise ConfigError(
                f"{path}: no sweep.json here; expected the directory of a sweep, outputs/<name>/sweeps/<id>"
            )
        if (found := values.get("format")) != FORMAT:
            raise ConfigError(
                f"{path / 'sweep.json'}: format: got {found}, expected {FORMAT}; another program or version wrote it"
            )
        jobs = [SweepJob(**job) for job in values.pop("jobs")]
        return cls(path=path, jobs=jobs, **values)

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
        directory = RunDirectory(self.path)
        directory.create(key)
        directory.lock(run_directory.LOCK_GRACE_SECONDS)
        self._directory = directory  # keeps the lock's file open
        self._cancelled.unlink(missing_ok=True)
        if self.file.exists() and (other := Sweep.load(self.path)).id != self.id:
            raise ConfigError(
                f"hydra.sweep.dir: got {self.path}, which contains another sweep ({other.command_line}); choose another "
                "folder, or remove hydra.sweep.dir: by default each sweep has its own folder in outputs/<name>/sweeps"
            )

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
        return RunDirectory(self.path).holder()


def states(sweep: Sweep, jobs: Sequence[SweepJob] | None = None) -> list[tuple[str, str]]:
    """Return state and reason of each job, from the runs' own records and from the backends."""
    jobs = sweep.jobs if jobs is None else jobs
    found: dict[int, BackendState] = {}
    for kind in {job.submission["kind"] for job in jobs if job.submission}:
        mine = [job for job in jobs if job.submission and job.submission["kind"] == kind]
        found |= {job.number: item for job, item in zip(mine, backend(kind).backend_states(mine), strict=True)}
    return [_state(job, found.get(job.number, BackendState(None))) for job in jobs]


def _state(job: SweepJob, backend_state: BackendState) -> tuple[str, str]:
    entry = job.directory.record()
    status = entry.get("status", WAITING)
    if backend_state.state is not None:
        return backend_state.state, backend_state.reason
    if job.problem and status != FINISHED:
        return FAILED, job.problem
    if status == RUNNING:
        died = "died without reporting an error (killed, or its machine went down); start the sweep again"
        return DIED, backend_state.reason or died
    if status == STOPPED and job.mark == PRUNED:
        return PRUNED, ""
    if status == FINISHED and job.problem:
        return FAILED, job.problem
    return status, str(entry.get("error", backend_state.reason))
