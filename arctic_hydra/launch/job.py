"""One job: a run in the process that composes it, from the resolved config to the record of its end.

A single run, each job of a sweep and a job on a cluster take the same steps: `Job.of`, `open_directory`,
`write_run_files`, start the ranks, `record_ending`.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_hydra import component, config, provenance, redaction, run_directory
from arctic_hydra.data.code_identity import legacy_identity
from arctic_hydra.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED_EARLY, ArcticHydraError, ConfigError
from arctic_hydra.files import code_file, ownership
from arctic_hydra.files.state_file import replace_text
from arctic_hydra.launch import nodes
from arctic_hydra.launch.extended_run import check_extended_run
from arctic_hydra.redaction import redact, redact_override
from arctic_hydra.redaction.trees import hidden_part, learn_secrets
from arctic_hydra.report import run_page
from arctic_hydra.run_directory import holds_checkpoints
from arctic_hydra.stopping import SIGNALS, blocked_signals
from arctic_hydra.tracking.base import call_each

_STOP_KINDS = ("KeyboardInterrupt", "RankDied", "NodeDied")
"""Error kinds that only report the end of a rank or agent, which is expected after a request to stop."""


@dataclass(frozen=True)
class Job:
    """A checked run and its directory; creating a job writes nothing."""

    run: config.Run
    tree: dict[str, Any]
    """The resolved config as plain values, secrets included."""
    overrides: list[str]
    """The overrides of the command line, with secrets hidden."""
    directory: run_directory.RunDirectory

    @classmethod
    def of(cls, tree: dict[str, Any], overrides: list[str]) -> Job:
        """Check a resolved config, and return its job; raises ConfigError with every problem found."""
        tree = nodes.apply_hostfile(tree)
        learn_secrets(tree, redact(tree))  # error messages quote values
        run = config.build(tree)
        if problems := list(_secrets_in_names(run)):
            raise ConfigError(problems)
        runs = Path(run.output_root).absolute() / run.name
        path, before = runs / config.run_id(run), runs / config.legacy_run_id(run)
        directory = run_directory.RunDirectory(before if before.is_dir() and not path.exists() else path)
        places = [directory.path, *(engine.directory_of(directory.path) for engine in run.checkpoint.values())]
        starts = run.fresh or not any(map(run_directory.holds_checkpoints, places))
        if starts and run.task in (config.Task.train, config.Task.check):
            check_extended_run(run)
        return cls(run, tree, [redact_override(item) for item in overrides], directory)

    @classmethod
    def read(cls, directory: run_directory.RunDirectory, overrides: list[str]) -> Job | None:
        """Return the job of a directory's `run.json`, with secrets hidden, or None if there is no such file."""
        tree = directory.config()
        return cls(config.build(tree), tree, overrides, directory) if tree else None

    @property
    def is_in_its_directory(self) -> bool:
        """Whether the directory has the name that follows from the config."""
        return self.directory.path.name in (config.run_id(self.run), config.legacy_run_id(self.run))

    def write_unless_finished(self) -> int | None:
        """Lock the directory of a job of a sweep and write the run files; return the lock, or None if the run is finished.

        Raises ArcticHydraError, and releases the directory, if the job cannot run here.
        """
        if problems := self.run.environment_problems():
            raise ConfigError(problems)
        data = self.data_digest()
        lock = self.open_directory(run_directory.LOCK_GRACE_SECONDS)
        try:
            if not self.is_finished(data):
                self.write_run_files(data)
                return lock
        except BaseException:
            self.directory.release()
            raise
        self.directory.release()  # a locked directory means a running job
        return None

    def open_directory(self, timeout_seconds: float = 0.0) -> int:
        """Create and lock the run's directory, clear it if `fresh`, and replace a damaged record; return the lock."""
        lock = self.lock_directory(timeout_seconds)
        self.prepare_directory()
        return lock

    def lock_directory(self, timeout_seconds: float = 0.0) -> int:
        """Create and lock the run's directory, and change nothing in it; return the lock."""
        self.directory.create()
        for name, folder in self._elsewhere.items():
            if problem := ownership.folder_problem(folder):
                raise ConfigError(f"checkpoint.{name}.output_dir: {folder} {problem}; {ownership.remedy(problem)}")
        return self.directory.lock(timeout_seconds)

    def prepare_directory(self) -> None:
        """Clear the locked directory if `fresh`, and replace a damaged record; the lock is released if that fails."""
        try:
            if self.run.fresh:
                self._clear()
            self.directory.repair_record()
            self._check_checkpoints()
        except BaseException:
            self.directory.release()
            raise

    def _check_checkpoints(self) -> None:
        """Raise ConfigError if the checkpoints of the run are not where its engine looks for them: it would start over."""
        finished = self.directory.record().get("status") == run_directory.FINISHED
        before = {} if finished else self.directory.engine_folders()
        for name, engine in self.run.checkpoint.items():
            here, there = engine.directory_of(self.directory.path), before.get(name)
            resumes = engine.enabled and engine.can_resume and engine.auto_resume
            if there and there != here and resumes and holds_checkpoints(there) and not holds_checkpoints(here):
                raise ConfigError(
                    f"checkpoint.{name}.output_dir: the checkpoints of this run are in {there}, and none is in {here}, so that it would "
                    "start over; move them there, pass output_dir as before, or fresh=true"
                )

    @property
    def _elsewhere(self) -> dict[str, Path]:
        """The directories outside the run's own that its checkpoint engines write to, by engine."""
        folders = {name: engine.directory_of(self.directory.path) for name, engine in self.run.checkpoint.items()}
        return {name: folder for name, folder in folders.items() if folder != self.directory.path}

    def _clear(self) -> None:
        try:
            self.directory.clear()
            for folder in self._elsewhere.values():
                ownership.remove_tree(folder)
        except OSError as error:
            raise ConfigError(
                f"fresh: cannot delete {error.filename or self.directory.path} ({error.strerror}); delete it yourself, or pass "
                "another output_root"
            ) from error

    def is_finished(self, data: str) -> bool:
        """Whether the run is finished on the same data; raises ArcticHydraError if the data has changed since."""
        before = self.directory.record()
        if before.get("status") != run_directory.FINISHED:
            return False
        if before.get("data", data) != data:  # unknown if the record was damaged
            what = "its data, or the code that reads it," if self.code_change() else "its data"
            raise ArcticHydraError(
                f"{self.directory.path} is finished, but {what} has changed since; pass fresh=true to train on the current "
                f"data, or name=<another> to keep this run"
            )
        return True

    def code_change(self) -> str:
        """Return a sentence on how the file of `code=` differs from that of the last start; empty if it does not."""
        before = self.directory.record()
        return code_file.change_since(before.get("code")) if before.get("status") else ""

    def data_digest(self) -> str:
        """Return a hash of the content of the run's local data; sources on the hub are not included."""
        data = self.run.data
        with legacy_identity(config.has_legacy_id(self.run, self.directory.path)):
            identities = {
                f"{split} {name}": data.identity_of(split, name)
                for split in ("train", "eval")
                for name, source in data.sources_of(split).items()
                if source.is_local
            }
        return hashlib.sha256(json.dumps(identities, sort_keys=True, default=str).encode()).hexdigest()

    def secrets(self) -> dict[str, Any]:
        """Return the part of the config that redaction hides from `run.json`; ranks receive it in their environment."""
        return hidden_part(self.tree, redact(self.tree))

    def write_run_files(self, data: str) -> str | None:
        """Write the files that the ranks read and the record; return how the run differs from a finished one of its name."""
        directory = self.directory
        if change := self.code_change():
            print(change, flush=True)
        directory.clear_result()
        (directory.path / ".hydra").mkdir(exist_ok=True)
        clean = redact(self.tree)
        for path, content in (("config.yaml", clean), (".hydra/overrides.yaml", self.overrides)):
            replace_text(directory.path / path, component.to_yaml(content))
        directory.write_run(clean)
        identity = redact(config.identity(self.run))
        directory.update_record(
            status=run_directory.RUNNING,
            name=self.run.name,
            data=data,
            config_hash=directory.path.name,
            overrides=self.overrides,
            identity=identity,
            ranks=self.run.world_size_wanted,
            **code_file.record_entry(directory.record()),
            started=time.time(),
            **provenance.surroundings(),
        )
        return run_directory.difference_from_last_run(directory.path, identity)

    def update_trackers(self, status: str) -> None:
        """Make the trackers end the run with `status`, if the ranks could not: they died, or the store was unreachable."""
        path = self.directory.path
        about = path, f"{self.run.name}/{path.name}", redact(self.tree), status
        call_each(self.run.tracking.values(), "catch_up", *about)


_NAMES = {
    "checkpoint": ("save_name",),
    "tracking": ("experiment", "project", "name", "entity", "log_dir"),
    "callback": ("output_dir",),
}
"""Fields whose values trackers show, or that are folders."""


def _secrets_in_names(run: config.Run) -> Iterator[str]:
    """Yield a problem for each name of a file or folder that contains a secret, because names cannot be masked."""
    names = {"name": run.name, "output_root": run.output_root, "objective": run.objective}
    places: dict[str, dict[str, Any]] = {
        "checkpoint": run.checkpoint,
        "tracking": run.tracking,
        "callback": run.callback,
    }
    names |= {
        f"{group}.{option}.{field}": getattr(item, field, None) or ""
        for group, items in places.items()
        for option, item in items.items()
        for field in _NAMES.get(group, ())
    }
    names |= {f"data.{split} sources": " ".join(run.data.sources_of(split)) for split in ("train", "eval")}
    for key, value in names.items():
        if redaction.contains_secret(value):
            yield (
                f"{key}: got {redaction.mask(value)}, whose hidden part is a secret, or the value of an environment variable "
                "with the name of one; files and folders would show it; choose another name"
            )


@dataclass(frozen=True)
class JobEnding:
    """How the ranks of a job ended, as recorded."""

    status: str
    exit_code: int
    result: dict[str, Any] | None = None
    """The result that rank 0 wrote, if the ranks ended regularly."""
    problem: str = ""
    """Short reason of a run without a result, or with a failed one."""
    details: str = ""
    """Full reason, with the traceback of an unexpected error."""


def record_ending(directory: run_directory.RunDirectory, code: int, *, asked_to_stop: bool = False) -> JobEnding:
    """Write the end of a run into its record and report, and return it; `code` is the exit code of the started child.

    Ranks that were asked to stop and ended without reporting an error count as stopped, whatever their exit code.
    """
    ending = _ending(directory, code, asked_to_stop)
    before = directory.record()
    seconds = before.get("seconds", 0.0) + time.time() - before.get("started", time.time())
    values: dict[str, Any] = {"status": ending.status, "seconds": round(seconds, 1)}
    if ending.result:
        values["result"] = ending.result
    if ending.status == run_directory.FAILED:
        values["error"] = ending.problem
    with blocked_signals():  # an interrupt must not leave a run that has ended marked as running
        directory.update_record(**values)
    if "identity" in before:  # a run, not a task on a checkpoint
        try:
            run_page.write_if_wanted(directory)
        except KeyboardInterrupt:  # the run has ended, and its record is written
            print(
                f"interrupted: {directory.path} has no report; the same command with task=report writes it",
                file=sys.stderr,
            )
    return ending


def has_stopped(directory: run_directory.RunDirectory, code: int, *, asked_to_stop: bool) -> bool:
    """Whether a nonzero exit code means a stop: by one of `SIGNALS`, or on request and without an error."""
    errors = directory.errors()
    if asked_to_stop:
        return not errors or errors[0]["kind"] in _STOP_KINDS
    return not errors and -code in SIGNALS


_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: " (signal 9 usually means that the kernel's OOM killer ended it)",
    signal.SIGPROF: " (the time limit for rendering one conversation; check tokenizer.chat_template)",
}


def _ending(directory: run_directory.RunDirectory, code: int, asked_to_stop: bool) -> JobEnding:
    result, errors, logs = directory.result(), directory.errors(), directory.path / "logs"
    if code == 0 and result:
        codes = {run_directory.FINISHED: EXIT_DONE, run_directory.FAILED: EXIT_FAILED}
        exit_code = codes.get(result["status"], EXIT_STOPPED_EARLY)
        problem = result.get("error", "")
        return JobEnding(result["status"], exit_code, result, problem, details=f"error: {problem}" if problem else "")
    signalled = -code if code < 0 else 0
    how = f"was killed by signal {signalled}" if signalled else f"exited with code {code}"
    if has_stopped(directory, code, asked_to_stop=asked_to_stop):
        resumable = directory.has_checkpoints()
        again = (
            f"{directory.same_command} resumes from the last checkpoint"
            if resumable
            else "the same command starts again"
        )
        ended = "ended at once"
        if signalled not in SIGNALS:
            ended = f"after the request to stop, {(errors and errors[0]['message']) or f'a rank {how}'}"
        reason = f"{ended}; {again}"
        return JobEnding(run_directory.STOPPED, EXIT_STOPPED_EARLY, problem=reason, details=reason)
    if not errors:
        hint = _SIGNAL_HINTS.get(signalled, "")
        details = f"error: a rank {how} without reporting an error{hint}; see {logs}"
        return JobEnding(run_directory.FAILED, EXIT_FAILED, problem=f"a rank {how}", details=details)
    first = errors[0]
    if first["expected"]:
        details = "\n".join(f"error: {problem}" for problem in first["problems"])
    else:
        details = f"rank {first['rank']} failed first:\n{first['traceback'].rstrip()}"
    return JobEnding(
        run_directory.FAILED, int(first["exit_code"]), problem=first["message"], details=f"{details}\nlogs: {logs}"
    )
