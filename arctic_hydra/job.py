"""One job: a run as the composing process sees it, from the composed config to the record of its end.

A single run, each job of a sweep and a job on a cluster take the same steps: `Job.of` a composed config, `open` its
directory, `write` what the ranks read, start the ranks, `conclude`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import compose, config, nodes, record
from arctic_hydra.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED_EARLY, ArcticHydraError, ConfigError
from arctic_hydra.redaction import redact, redact_override
from arctic_hydra.stopping import SIGNALS, blocked_signals
from arctic_hydra.tasks import report

if TYPE_CHECKING:
    from omegaconf import DictConfig


_NO_ERRORS = ("KeyboardInterrupt", "RankDied", "NodeDied")
"""Kinds of error reports that say only that a rank or an agent ended, as one that was asked to stop may."""


@dataclass(frozen=True)
class Job:
    """A composed and checked run with its directory; making one writes nothing."""

    run: config.Run
    tree: dict[str, Any]
    """The resolved config as plain values, secrets included."""
    overrides: list[str]
    """What was asked for on the command line, secrets hidden."""
    directory: record.RunDirectory

    @classmethod
    def of(cls, cfg: DictConfig, overrides: list[str]) -> Job:
        """Resolve and check a composed config (less Hydra's node); raises ConfigError with every problem found."""
        tree = nodes.spread(compose.resolved(cfg))
        run = config.build(tree)
        directory = record.RunDirectory(Path(run.output_root).absolute() / run.name / config.run_id(run))
        return cls(run, tree, [redact_override(item) for item in overrides], directory)

    @classmethod
    def read(cls, directory: record.RunDirectory, overrides: list[str]) -> Job | None:
        """Return the job that a `run.json` holds, its secrets hidden; None where there is none."""
        tree = record.read_json(directory.run_file).get("config")
        return cls(config.build(tree), tree, overrides, directory) if tree else None

    def prepare(self) -> int | None:
        """Take all steps up to the start of the ranks, for a job of a sweep; return the lock, or None where it is finished.

        Raises ArcticHydraError where the job cannot run here; its directory is not held then.
        """
        if problems := self.run.environment_problems():
            raise ConfigError(problems)
        data = self.data_digest()
        lock = self.open(record.LEAVING_SECONDS)
        try:
            if not self.finished(data):
                self.write(data)
                return lock
        except BaseException:
            self.directory.release()
            raise
        self.directory.release()  # else the job would count as running
        return None

    def open(self, patience_seconds: float = 0.0) -> int:
        """Make the run's directory, hold it for this process, and delete what was there if `fresh`; return the lock."""
        self.directory.create()
        lock = self.directory.lock(patience_seconds)
        if self.run.fresh:
            self.directory.clear()
            for engine in self.run.checkpoint.values():
                if (place := engine.place(self.directory.path)) != self.directory.path:
                    shutil.rmtree(place, ignore_errors=True)
        return lock

    def finished(self, data: str) -> bool:
        """Whether the run is finished on this very data; raises ArcticHydraError where the data has changed since."""
        before = self.directory.record()
        if before.get("status") != record.FINISHED:
            return False
        if before["data"] != data:
            raise ArcticHydraError(
                f"{self.directory.path} is finished, but its data has changed since; pass fresh=true to train on the data "
                f"as it is now, or name=<another> to keep this run"
            )
        return True

    def data_digest(self) -> str:
        """Return a hash of the content of the run's local data, as its sources see it; the hub is not asked here."""
        data = self.run.data
        identities = {
            f"{split} {name}": data.identity_of(split, name)
            for split in ("train", "eval")
            for name, source in data.sources_of(split).items()
            if source.is_local
        }
        return hashlib.sha256(json.dumps(identities, sort_keys=True, default=str).encode()).hexdigest()

    def secrets(self) -> dict[str, Any]:
        """Return what redaction hides from `run.json`, by dotted key; the ranks get it through their environment."""
        hidden = record.flatten(redact(self.tree))
        return {key: value for key, value in record.flatten(self.tree).items() if hidden[key] != value}

    def write(self, data: str) -> str | None:
        """Write what the ranks read and the record of a running job; return in what it differs from a neighbour."""
        directory = self.directory
        directory.forget_outcome()
        (directory.path / ".hydra").mkdir(exist_ok=True)
        clean = redact(self.tree)
        for path, content in (("config.yaml", clean), (".hydra/overrides.yaml", self.overrides)):
            (directory.path / path).write_text(compose.to_yaml(content), encoding="utf-8")
        record.write_json(directory.run_file, {"config": clean}, mode=0o600)
        who = redact(config.identity(self.run))
        directory.update_record(
            status=record.RUNNING,
            name=self.run.name,
            data=data,
            config_hash=config.run_id(self.run),
            overrides=self.overrides,
            identity=who,
            ranks=self.run.world_size_wanted,
            started=time.time(),
            **record.surroundings(),
        )
        return record.neighbour_difference(directory.path, who)

    def tell_trackers(self, status: str) -> None:
        """Let the trackers end the run with `status`, where the ranks could not: a store that was away, a dead rank."""
        path = self.directory.path
        for tracker in self.run.tracking.values():
            tracker.catch_up(path, f"{self.run.name}/{path.name}", redact(self.tree), status)


@dataclass(frozen=True)
class Ending:
    """How a job's ranks ended, as its record holds it by now."""

    status: str
    exit_code: int
    result: dict[str, Any] | None = None
    """What rank 0 left, where the ranks came to an end of their own."""
    problem: str = ""
    """What ended a run that has no result, in short."""
    details: str = ""
    """The same at length, with the traceback of an error that nobody expected."""


def conclude(directory: record.RunDirectory, code: int, *, asked_to_stop: bool = False) -> Ending:
    """Write the end of a run into its record and its report, and return it; `code` is the exit code of what `launch` started.

    Ranks that were asked to stop and ended without an error of their own, however that came, count as stopped.
    """
    ending = _ending(directory, code, asked_to_stop)
    before = directory.record()
    seconds = before.get("seconds", 0.0) + time.time() - before.get("started", time.time())
    values: dict[str, Any] = {"status": ending.status, "seconds": round(seconds, 1)}
    if ending.result:
        values["result"] = ending.result
    elif ending.status == record.FAILED:
        values["error"] = ending.problem
    with blocked_signals():  # a run that is over is not to be left as a running one
        directory.update_record(**values)
    if "identity" in before:  # a run, not a task on one
        try:
            report.write_if_wanted(directory)
        except KeyboardInterrupt:  # the run is over, and its record says how
            print(
                f"interrupted: {directory.path} has no report; the same command with task=report writes it",
                file=sys.stderr,
            )
    return ending


def has_stopped(directory: record.RunDirectory, code: int, *, asked_to_stop: bool) -> bool:
    """Whether an exit code other than 0 is that of a stop: by one of `SIGNALS`, or on request and without an error."""
    errors = directory.errors()
    if asked_to_stop:
        return not errors or errors[0]["kind"] in _NO_ERRORS
    return not errors and -code in SIGNALS


def _ending(directory: record.RunDirectory, code: int, asked_to_stop: bool) -> Ending:
    result, errors, logs = directory.result(), directory.errors(), directory.path / "logs"
    if code == 0 and result:
        finished = result["status"] == record.FINISHED
        return Ending(result["status"], EXIT_DONE if finished else EXIT_STOPPED_EARLY, result)
    signalled = -code if code < 0 else 0
    how = f"was killed by signal {signalled}" if signalled else f"ended with exit code {code}"
    if has_stopped(directory, code, asked_to_stop=asked_to_stop):
        resumable = any((directory.path / "checkpoints").glob("step-*"))
        goes_on = "resumes from the last checkpoint" if resumable else "starts again"
        ended = "ended at once"
        if signalled not in SIGNALS:
            ended = f"after the request to stop, {(errors and errors[0]['message']) or f'a rank {how}'}"
        said = f"{ended}; the same command {goes_on}"
        return Ending(record.STOPPED, EXIT_STOPPED_EARLY, problem=said, details=said)
    if not errors:
        hint = " (a kill by signal 9 is most often the kernel's, out of memory)" if signalled == 9 else ""
        details = f"error: a rank {how} without a word{hint}; see {logs}"
        return Ending(record.FAILED, EXIT_FAILED, problem=f"a rank {how}", details=details)
    first = errors[0]
    if first["expected"]:
        details = "\n".join(f"error: {problem}" for problem in first["problems"])
    else:
        details = f"rank {first['rank']} failed first:\n{first['traceback'].rstrip()}"
    return Ending(record.FAILED, int(first["exit_code"]), problem=first["message"], details=f"{details}\nlogs: {logs}")
