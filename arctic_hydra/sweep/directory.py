"""The sweep's directory: `sweep.json`, its jobs, and how each of them stands.

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
from arctic_hydra.run_directory import RunDirectory

FORMAT = 1
WAITING, QUEUED, RUNNING, FINISHED = "waiting", "queued", run_directory.RUNNING, run_directory.FINISHED
STOPPED, PRUNED, FAILED, DIED = run_directory.STOPPED, "pruned", run_directory.FAILED, "died"
UNKNOWN = "unknown"
"""How a job stands while its backend does not answer."""
OVER = (FINISHED, PRUNED, FAILED, DIED, STOPPED)
"""States in which nothing of the job runs or is about to."""


@dataclass
class SweepJob:
    """One job of a sweep as `sweep.json` holds it."""

    number: int
    """Place in the sweep from 0; of a search, the trial's number."""
    overrides: list[str]
    """The job's whole command line, secrets hidden."""
    run_dir: str
    run_file: str
    submission: dict[str, Any] | None = None
    """Where it was handed to: `kind` names the backend, the rest is the backend's own. None: not yet."""
    mark: str = ""
    """`pruned` where the search ended the job on purpose; its run is stopped."""
    problem: str = ""
    """Why the job could not be started, or has no objective; what ended a started run stands in its record."""

    @property
    def directory(self) -> RunDirectory:
        """The run's directory."""
        return RunDirectory(Path(self.run_dir))

    def reread(self) -> Job:
        """Return a started job as its `run.json` holds it, to run it again.

        Raises ConfigError where that lacks secrets that the job was composed with, or the machine something by now.
        """
        if "***" in self.directory.run_file.read_text(encoding="utf-8"):
            raise ConfigError(
                f"its configuration holds secrets, which {self.directory.run_file} does not; give the sweep's command again: "
                "it runs what is not finished"
            )
        job = Job.read(self.directory, self.overrides)
        assert job is not None, "a job that was started has its run.json"
        if problems := job.run.environment_problems():
            raise ConfigError(problems)
        return job


@dataclass
class Standing:
    """What a backend knows of a job: whether it waits or runs, else why it is gone."""

    state: str | None
    """`queued`, `running`, `unknown`, or None where the backend has nothing (left) of it."""
    reason: str = ""
    """The backend's words for an end that the run itself could not write down, such as OUT_OF_MEMORY."""


class Backend(Protocol):
    """What the module `arctic_hydra.sweep.<kind>` offers for jobs whose submission has that kind."""

    def standings(self, jobs: Sequence[SweepJob]) -> list[Standing]:
        """Return how each job stands; one call for all, since a cluster is asked over the network."""

    def logs(self, job: SweepJob) -> list[Path]:
        """Return the job's log files, the most telling last."""

    def cancel(self, sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
        """Ask the jobs to stop, as SIGTERM does; returns before they have."""

    def end_conductor(self, sweep: Sweep) -> None:
        """Have the process that conducts the sweep stop its jobs, start no others, and write the results."""

    def resubmit(self, sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
        """Run the jobs again from their `run.json`; writes their new submissions into the sweep."""


def backend(kind: str) -> Backend:
    """Return the backend of a submission's kind; raises ConfigError where this version has none."""
    try:
        return cast(Backend, importlib.import_module(f"arctic_hydra.sweep.{kind}"))
    except ModuleNotFoundError as error:
        raise ConfigError(f"sweep.json: got submission kind {kind!r}, which this version does not know") from error


@dataclass
class Sweep:
    """A sweep's directory and what `sweep.json` says; `save` after changing a job."""

    path: Path
    id: str
    name: str
    kind: str
    """`grid` or `search`."""
    command: list[str]
    """The overrides of the command line, secrets hidden."""
    objective: str
    maximize: bool
    launcher: str
    working_directory: str
    jobs: list[SweepJob] = field(default_factory=list)
    format: int = FORMAT

    @property
    def command_line(self) -> str:
        """The command that makes the sweep, as a shell takes it."""
        return shlex.join([*run_directory.PROGRAM.split(), "-m", *self.command])

    @property
    def file(self) -> Path:
        """What the sweep is."""
        return self.path / "sweep.json"

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read a sweep from its directory; raises ConfigError where there is none that this version reads."""
        try:
            values = run_directory.read_json(path / "sweep.json")
        except ValueError as error:
            raise ConfigError(
                f"{path / 'sweep.json'}: not JSON ({error}); the file is damaged, or not a sweep's"
            ) from error
        if not values:
            raise ConfigError(f"{path}: holds no sweep.json; expected a sweep's directory, outputs/<name>/sweeps/<id>")
        if (found := values.get("format")) != FORMAT:
            raise ConfigError(
                f"{path / 'sweep.json'}: format: got {found}, expected {FORMAT}; another program or version wrote it"
            )
        jobs = [SweepJob(**job) for job in values.pop("jobs")]
        return cls(path=path, jobs=jobs, **values)

    def save(self) -> None:
        """Write `sweep.json` in one step."""
        values = asdict(self)
        del values["path"]
        run_directory.write_json(self.file, values)

    def conduct(self, key: str = "output_root") -> None:
        """Make the directory, which `key` of the config places, and hold it for this process.

        Raises ConfigError where it cannot be written or holds another sweep, RunLockedError where the sweep is under way.
        """
        room = RunDirectory(self.path)
        room.create(key)
        room.lock(run_directory.LOCK_GRACE_SECONDS)
        self._room = room  # keeps the lock's file open
        self._cancelled.unlink(missing_ok=True)
        if self.file.exists() and (other := Sweep.load(self.path)).id != self.id:
            raise ConfigError(
                f"hydra.sweep.dir: got {self.path}, which holds another sweep ({other.command_line}); pass a folder of "
                "its own, or leave hydra.sweep.dir out: each sweep has one below outputs/<name>/sweeps"
            )

    @property
    def _cancelled(self) -> Path:
        return self.path / "cancelled"

    def ask_conductor_to_end(self) -> None:
        """Leave word for the process that conducts the sweep, on whatever machine: it starts no further jobs."""
        self._cancelled.touch()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled the sweep since its conductor started."""
        return self._cancelled.exists()

    def conductor(self) -> str | None:
        """Return who conducts the sweep now (`process <pid> on <host>, since ...`), None where nobody does."""
        return RunDirectory(self.path).holder()


def states(sweep: Sweep, jobs: Sequence[SweepJob] | None = None) -> list[tuple[str, str]]:
    """Return state and reason of each job, from the runs' own records and from the backends."""
    jobs = sweep.jobs if jobs is None else jobs
    found: dict[int, Standing] = {}
    for kind in {job.submission["kind"] for job in jobs if job.submission}:
        mine = [job for job in jobs if job.submission and job.submission["kind"] == kind]
        found |= {job.number: item for job, item in zip(mine, backend(kind).standings(mine), strict=True)}
    return [_state(job, found.get(job.number, Standing(None))) for job in jobs]


def _state(job: SweepJob, standing: Standing) -> tuple[str, str]:
    entry = job.directory.record()
    status = entry.get("status", WAITING)
    if standing.state is not None:
        return standing.state, standing.reason
    if job.problem and status != FINISHED:
        return FAILED, job.problem
    if status == RUNNING:
        died = "died without a word (killed, or the machine went down); start the sweep again"
        return DIED, standing.reason or died
    if status == STOPPED and job.mark == PRUNED:
        return PRUNED, ""
    if status == FINISHED and job.problem:
        return FAILED, job.problem
    return status, str(entry.get("error", standing.reason))
