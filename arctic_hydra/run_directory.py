"""The run directory: its lock, and the files that describe a run and its result."""

from __future__ import annotations

import json
import math
import re
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from arctic_hydra import redaction
from arctic_hydra.component import flatten
from arctic_hydra.errors import ConfigError, StateFileError
from arctic_hydra.files.lock_file import LockFile
from arctic_hydra.files.ownership import empty_folder, folder_problem, misplaced, remedy
from arctic_hydra.files.state_file import Entries, Schema, Table, at_least_0, is_text, one_of, read_state, replace_text

PROGRAM = "python -m arctic_hydra"
"""The command as the user types it."""
FINISHED, STOPPED, FAILED, RUNNING = "finished", "stopped", "failed", "running"
DIED = "died"
"""What a run is called whose record says that it runs, but which no process holds: it was killed before it could record its end."""
RESERVED_NAMES = frozenset(
    "checkpoints config.yaml logs memory_profile metrics.jsonl preview.html profile record.json record.json.damaged report.html "
    "result.json run.json samples.jsonl stop".split()
)
"""Files and folders of a run directory, in lower case; exports and trackers must use other names."""
RESERVED_PREFIXES = ("task-", "tracking-")
"""Prefixes of task folders and of tracker files."""
LOCK_GRACE_SECONDS = 5.0
"""Time that the processes of a killed sweep may need to release the lock of a directory."""

_STATUS = one_of(FINISHED, STOPPED, FAILED, RUNNING)
_TEXTS = [str]
RUN_FILE = Schema("repeat the command of the run, which writes it again", Table({"config": dict}))
"""`run.json`: the input of the ranks."""


def _ranks(value: Any) -> str | None:
    fits = type(value) in (int, str) and re.fullmatch("auto|[1-9][0-9]{0,8}", str(value))
    return None if fits else "auto or a number above 0"


_COUNTERS = {"step": (int, None), "horizon": (int, None), "objective": (float, None)}
RESULT_FILE = Schema("repeat the command of the run", Table({"status": _STATUS}, _COUNTERS))
"""`result.json`: the result of rank 0, or of a task."""
_GIT = Table({"revision": str, "dirty": (bool, None)})
RECORD_FILE = Schema(
    "repeat the command of the run, which writes it again",
    Table(
        optional={
            "status": _STATUS,
            "name": str,
            "data": str,
            "config_hash": str,
            "overrides": _TEXTS,
            "identity": dict,
            "ranks": _ranks,
            "started": float,
            "seconds": float,
            "result": Table(optional=_COUNTERS),
            "error": str,
            "horizon": (int, None),
            "statistics": Table(optional={"train": (dict, None), "eval": (dict, None), "model": dict}),
            "submission": (Table({"kind": str}, {"job_id": str}), None),
            "git": (_GIT, None),
            "working_directory": Table(optional={"git": (_GIT, None)}),
            "versions": dict,
            "code": (Table({"file": str, "sha256": dict}), None),
            "verification": Entries(is_text, Table({"equal": _TEXTS, "differs": _TEXTS, "unchecked": _TEXTS})),
        }
    ),
)
"""`record.json`: the description of a run, its status and its result."""
ERROR_FILE = Schema(
    "see the logs beside it",
    Table(
        {
            "time": float,
            "rank": int,
            "kind": str,
            "message": str,
            "problems": _TEXTS,
            "expected": bool,
            "traceback": str,
            "exit_code": at_least_0,
        }
    ),
)
"""`logs/error-rank<n>.json`: the error of a rank."""
_FOLDERS = ("checkpoints", "logs", ".hydra", "profile", "memory_profile", "tracking-wandb", "tracking-tensorboard")
_FILES = ("config.yaml", "samples.jsonl", "metrics.jsonl", "record.json", "report.html", "result.json", "run.json")


class RunDirectory:
    """The directory of one run; besides the composing process and rank 0, agents and ranks write to its `logs`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = LockFile(path / ".lock")

    @property
    def run_file(self) -> Path:
        """Input of the ranks: the composed config."""
        return self.path / "run.json"

    @property
    def record_file(self) -> Path:
        """Description of the run, its status and its result."""
        return self.path / "record.json"

    @property
    def result_file(self) -> Path:
        """Result that rank 0 writes for the composing process."""
        return self.path / "result.json"

    def of_task(self, task: str) -> RunDirectory:
        """Return the folder of a task on this run, which has its own logs and result."""
        return RunDirectory(self.path / f"task-{task}")

    def create(self, key: str = "output_root") -> None:
        """Create the directory, private to the user. Raises ConfigError if that fails; `key` is the config key to blame."""
        try:
            self._check(key)
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check(key)
            probe = self.path / f".probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"{key}: cannot write to {self.path} ({error.strerror}); pass {key}=<a folder that you can write to>"
            ) from error

    def _check(self, key: str) -> None:
        """Raise ConfigError if the directory is not this user's own, or contains something else under a name of the run."""
        if problem := folder_problem(self.path):
            raise ConfigError(f"{key}: {self.path} {problem}; {remedy(problem)}, or pass {key}=<another folder>")
        if problem := misplaced(self.path, _FILES, _FOLDERS):
            raise ConfigError(problem)

    @property
    def lock_file(self) -> LockFile:
        """The lock of the directory."""
        return self._lock

    def lock(self, patience_seconds: float = 0.0) -> int:
        """Lock the directory for this process and return the file descriptor, which a child may inherit.

        Raises RunLockedError, naming the holder, if another process still holds the lock after `patience_seconds`.
        """
        return self._lock.acquire(patience_seconds)

    def release(self) -> None:
        """Release the lock of this process; children that inherited the descriptor keep the directory locked until they exit."""
        self._lock.release()

    def holder(self) -> str | None:
        """Return the holder of the lock (`process <pid> on <host>, since <time>`), or None if it is free."""
        return self._lock.holder()

    def clear(self) -> None:
        """Delete everything in the directory except the lock file. Raises UnsafePathError if it must not be emptied."""
        empty_folder(self.path, keep={self._lock.path.name})

    def config(self) -> dict[str, Any] | None:
        """Return the config in `run.json`, with secrets hidden, or None if there is no such file. Raises StateFileError."""
        content = read_state(self.run_file, RUN_FILE)
        return None if content is None else content["config"]

    @property
    def same_command(self) -> str:
        """How messages name the command that resumes the run: `fresh=true` would delete it instead."""
        with suppress(StateFileError):
            if (self.config() or {}).get("fresh"):
                return "the same command without fresh=true"
        return "the same command"

    def check_trained(self, task: str, otherwise: str = "") -> None:
        """Raise ConfigError if the directory, on whose run `task` works, does not exist; `otherwise` says what else to pass."""
        if not self.path.is_dir():
            raise ConfigError(
                f"task: got {task}, but {relative(self.path)} does not exist: this config has never been trained; repeat the "
                f"overrides of the training{otherwise}"
            )

    def has_checkpoints(self) -> bool:
        """Whether the run has a published checkpoint, valid or not, here or below the `output_dir` of an engine in `run.json`."""
        return any(map(holds_checkpoints, [self.path, *self.engine_folders().values()]))

    def engine_folders(self) -> dict[str, Path]:
        """Return where the checkpoint engines in `run.json` write: this directory, or one below their `output_dir`."""
        engines: dict[str, Any] = {}
        with suppress(StateFileError):  # reported where the config is needed
            engines = (self.config() or {}).get("checkpoint") or {}
        bases = {name: engine.get("output_dir") for name, engine in engines.items() if isinstance(engine, dict)}
        return {name: below(Path(base), self.path) if base else self.path for name, base in bases.items()}

    def write_run(self, config: dict[str, Any]) -> None:
        """Write `run.json`, with secrets hidden."""
        write_json(self.run_file, {"format": RUN_FILE.format, "config": config})

    def record(self) -> dict[str, Any]:
        """Return the record; empty if there is none.

        A damaged record is replaced by what `result.json` says, or by the status `stopped`: a run that is neither running nor
        known to be finished resumes from its checkpoints. Raises StateFileError if it cannot be trusted.
        """
        try:
            return read_state(self.record_file, RECORD_FILE) or {}
        except StateFileError as error:
            if not error.damaged:
                raise
            return self._record_from_result(str(error))

    def _record_from_result(self, problem: str) -> dict[str, Any]:
        try:
            result = self.result()
        except StateFileError:
            result = {}
        if not result:
            return {"status": STOPPED, "error": problem}
        return {"status": result["status"], "horizon": result.get("horizon"), "result": result}

    def repair_record(self) -> None:
        """Move a damaged record aside and write what `result.json` says, with a warning; the caller holds the lock."""
        try:
            read_state(self.record_file, RECORD_FILE)
        except StateFileError as error:
            if not error.damaged:
                raise
            found = self.record()
            self.record_file.replace(self.record_file.with_name("record.json.damaged"))
            write_json(self.record_file, {"format": RECORD_FILE.format, **found})
            print(f"warning: {error}; it is now record.json.damaged, and the run continues without it", file=sys.stderr)

    def update_record(self, **values: Any) -> None:
        """Set values in the record."""
        if "error" in values:
            values["error"] = redaction.mask(values["error"])
        write_json(self.record_file, {"format": RECORD_FILE.format, **self.record(), **values})

    def result(self) -> dict[str, Any]:
        """Return the result that rank 0 wrote; empty if it wrote none. Raises StateFileError."""
        return read_state(self.result_file, RESULT_FILE) or {}

    def write_result(self, result: dict[str, Any]) -> None:
        """Write the result, on rank 0."""
        write_json(self.result_file, {"format": RESULT_FILE.format, **result})

    def errors(self) -> list[dict[str, Any]]:
        """Return the error reports of the ranks, earliest first; a damaged report comes last."""
        found = [_read_error(path) for path in (self.path / "logs").glob("error-rank*.json")]
        return sorted(found, key=lambda error: float(error["time"]))

    def error_files(self) -> set[tuple[str, int]]:
        """Return names and modification times of the error reports, to detect new ones."""
        found = {path.name: _modified(path) for path in (self.path / "logs").glob("error-rank*.json")}
        return {(name, modified) for name, modified in found.items() if modified is not None}

    def node_file(self, index: int) -> Path:
        """Return the file that the agent of node `index` writes when it exits."""
        return self.path / "logs" / f"node{index}.ended"

    @property
    def rendezvous_file(self) -> Path:
        """File that the agent of the first node creates once the rendezvous is complete."""
        return self.path / "logs" / "nodes.met"

    def record_node_exit(self, index: int, code: int) -> None:
        """Record that the agent of node `index` exited with `code`, negative for a signal."""
        if not self.path.is_dir():
            return  # not shared with the first node
        self.node_file(index).parent.mkdir(exist_ok=True)
        replace_text(self.node_file(index), f"{code}\n")

    def clear_result(self) -> None:
        """Remove the result and the errors of an earlier start of this run, from files and from the record.

        The record of exports that failed their check stays until a start has ended with that error.

        Raises ConfigError if the directory is not this user's own, or if its `logs` is a link.
        """
        self._check("output_root")
        self.result_file.unlink(missing_ok=True)
        before = self.record()
        reported = before.get("result", {}).get("status") == FAILED  # that start has ended with its wrong exports
        gone = ("result", "error", *(["verification"] if reported else []))
        kept = {key: value for key, value in before.items() if key not in gone}
        if kept != before:
            write_json(self.record_file, {"format": RECORD_FILE.format, **kept})
        for pattern in ("error-rank*.json", "node*.ended", "nodes.met"):
            for path in (self.path / "logs").glob(pattern):
                path.unlink()


def is_own_name(name: str) -> bool:
    """Whether a run uses `name` in its directory. Case is ignored, because some file systems ignore it."""
    return name.lower() in RESERVED_NAMES or name.lower().startswith(RESERVED_PREFIXES)


def holds_checkpoints(folder: Path) -> bool:
    """Whether a folder, below which an engine writes, holds a published checkpoint, valid or not."""
    return any((folder / "checkpoints").glob("step-*"))


def below(base: Path, run_dir: Path) -> Path:
    """Return the folder of a run below another base directory than that of its run directory."""
    return base / run_dir.parent.name / run_dir.name


def relative(path: Path) -> Path:
    """Return `path` relative to the working directory if it is below it, else unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file atomically."""
    replace_text(path, json.dumps(value, indent=2, default=str) + "\n")


def difference_from_last_run(path: Path, identity: dict[str, Any]) -> str | None:
    """Return how a run differs from the latest finished run of the same name, or None for no value or more than five."""
    others = [item for item in path.parent.glob("*/record.json") if item.parent != path]
    for other in sorted(others, key=lambda item: _modified(item) or 0, reverse=True):
        try:
            record = read_state(other, RECORD_FILE) or {}
        except StateFileError:
            continue  # its own command reports it
        if record.get("status") != FINISHED:
            continue
        theirs, ours = flatten(record.get("identity", {})), flatten(json.loads(json.dumps(identity, default=str)))
        changed = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        options = tuple(key.removesuffix("@") for key in changed if key.endswith(".@"))
        # What only one of two options has follows from the choice.
        told = [
            key
            for key in changed
            if key.endswith(".@") or (key in ours and key in theirs) or not key.startswith(options)
        ]
        if 0 < len(told) <= 5:
            words = ", ".join(_change(key, theirs.get(key), ours.get(key)) for key in told)
            return f"differs from the finished run {other.parent.name} in {words}"
        return None
    return None


def _change(key: str, before: Any, now: Any) -> str:
    """Return what has changed: two values, or two options such as "trainer/sft version 1", named as on the command line."""
    if key.endswith(".@"):
        before, now = (str(value).rpartition("/")[2] for value in (before, now))
        versions = [text.partition(" version ") for text in (before, now)]
        if versions[0][0] != versions[1][0]:
            (before, *_), (now, *_) = versions
    return f"{key.removesuffix('.@')} {before} -> {now}"


def _modified(path: Path) -> int | None:
    """Return the modification time of a file in nanoseconds, or None if another process has removed it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _read_error(path: Path) -> dict[str, Any]:
    try:
        found, problem = read_state(path, ERROR_FILE), f"{path}: was deleted"
    except StateFileError as error:
        found, problem = None, str(error)
    return found or _error(-1, "Unknown", problem) | {"time": math.inf}


def _error(rank: int, kind: str, message: str) -> dict[str, Any]:
    cause = {"time": 0.0, "problems": [message], "expected": True, "traceback": "", "exit_code": 1}
    return {**cause, "rank": rank, "kind": kind, "message": message}


def write_error(run_dir: Path, rank: int, kind: str, message: str, **more: Any) -> None:
    """Write `logs/error-rank<n>.json`. Without `more`, it is written on behalf of a rank and sorts before all others."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    report = _error(rank, kind, message)
    if more:
        report |= {"time": time.time(), **more}
    clean = {key: redaction.mask(value) if isinstance(value, str) else value for key, value in report.items()}
    clean["problems"] = [redaction.mask(problem) for problem in report["problems"]]
    replace_text(folder / f"error-rank{rank}.json", json.dumps(clean, indent=2))
