"""The run directory: its lock, and the files that describe a run and its result."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from arctic_hydra import redaction
from arctic_hydra.component import flatten
from arctic_hydra.errors import ConfigError, RunLockedError

PROGRAM = "python -m arctic_hydra"
"""The command as the user types it."""
FINISHED, STOPPED, FAILED, RUNNING = "finished", "stopped", "failed", "running"
RESERVED_NAMES = frozenset(
    "checkpoints config.yaml logs metrics.jsonl preview.html record.json report.html result.json run.json stop".split()
)
"""Files and folders of a run directory, in lower case; exports and trackers must use other names."""
RESERVED_PREFIXES = ("task-", "tracking-")
"""Prefixes of task folders and of tracker files."""
LOCK_GRACE_SECONDS = 5.0
"""Time that the processes of a killed sweep may need to release the lock of a directory."""


class RunDirectory:
    """The directory of one run; only the composing process and rank 0 write to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None

    @property
    def run_file(self) -> Path:
        """Input of the ranks: the composed config and the command."""
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
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self.path / f".probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"{key}: cannot write to {self.path} ({error.strerror}); pass {key}=<a folder that you can write to>"
            ) from error

    def lock(self, patience_seconds: float = 0.0) -> int:
        """Lock the directory for this process and return the file descriptor, which a child may inherit.

        Raises RunLockedError, naming the holder, if another process still holds the lock after `patience_seconds`.
        """
        end = time.monotonic() + patience_seconds
        handle = (self.path / ".lock").open("a+")
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() < end:
                    time.sleep(0.1)
                    continue
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                raise RunLockedError(
                    f"{self.path} is in use by another run ({holder}); wait until it ends, or stop it"
                ) from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        handle.flush()
        self._lock = handle
        return handle.fileno()

    def release(self) -> None:
        """Release the lock of this process; children that inherited the descriptor keep the directory locked until they exit."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def holder(self) -> str | None:
        """Return the holder of the lock (`process <pid> on <host>, since <time>`), or None if it is free."""
        path = self.path / ".lock"
        if not path.exists():
            return None
        with path.open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return handle.read().strip() or "unknown"
        return None

    def clear(self) -> None:
        """Delete everything in the directory except the lock file."""
        for item in self.path.iterdir():
            if item.name != ".lock":
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()

    def record(self) -> dict[str, Any]:
        """Return the record; empty if there is none."""
        return read_json(self.record_file)

    def update_record(self, **values: Any) -> None:
        """Set values in the record."""
        if "error" in values:
            values["error"] = redaction.mask(values["error"])
        write_json(self.record_file, {**self.record(), **values})

    def result(self) -> dict[str, Any]:
        """Return the result that rank 0 wrote; empty if it wrote none."""
        return read_json(self.result_file)

    def errors(self) -> list[dict[str, Any]]:
        """Return the error reports of the ranks, earliest first."""
        found = [read_json(path) for path in (self.path / "logs").glob("error-rank*.json")]
        return sorted(found, key=lambda error: float(error["time"]))

    def error_files(self) -> set[tuple[str, int]]:
        """Return names and modification times of the error reports, to detect new ones."""
        return {(path.name, path.stat().st_mtime_ns) for path in (self.path / "logs").glob("error-rank*.json")}

    def node_file(self, index: int) -> Path:
        """Return the file that the agent of node `index` writes when it exits."""
        return self.path / "logs" / f"node{index}.ended"

    @property
    def meeting_file(self) -> Path:
        """File that the agent of the first node creates once the rendezvous is complete."""
        return self.path / "logs" / "nodes.met"

    def leave_node(self, index: int, code: int) -> None:
        """Record that the agent of node `index` exited with `code`, negative for a signal."""
        if not self.path.is_dir():
            return  # not shared with the first node
        self.node_file(index).parent.mkdir(exist_ok=True)
        self.node_file(index).write_text(f"{code}\n", encoding="utf-8")

    def forget_outcome(self) -> None:
        """Remove the result and the errors of an earlier start of this run, from files and from the record."""
        self.result_file.unlink(missing_ok=True)
        before = self.record()
        kept = {key: value for key, value in before.items() if key not in ("result", "error")}
        if kept != before:
            write_json(self.record_file, kept)
        for pattern in ("error-rank*.json", "node*.ended", "nodes.met"):
            for path in (self.path / "logs").glob(pattern):
                path.unlink()


def is_own_name(name: str) -> bool:
    """Whether a run uses `name` in its directory. Case is ignored, because some file systems ignore it."""
    return name.lower() in RESERVED_NAMES or name.lower().startswith(RESERVED_PREFIXES)


def relative(path: Path) -> Path:
    """Return `path` relative to the working directory if it is below it, else unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # type: ignore[no-any-return]


def write_json(path: Path, value: dict[str, Any], mode: int = 0o600) -> None:
    """Replace a JSON file atomically."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=2, default=str)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    beside.replace(path)


def neighbour_difference(path: Path, identity: dict[str, Any]) -> str | None:
    """Return how a run differs from the latest finished run of the same name, or None for more than five values."""
    others = [item for item in path.parent.glob("*/record.json") if item.parent != path]
    for other in sorted(others, key=lambda item: item.stat().st_mtime, reverse=True):
        record = read_json(other)
        if record.get("status") != FINISHED:
            continue
        theirs, ours = flatten(record.get("identity", {})), flatten(json.loads(json.dumps(identity, default=str)))
        changed = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        if len(changed) <= 5:
            words = ", ".join(f"{key} {theirs.get(key)} -> {ours.get(key)}" for key in changed)
            return f"differs from the finished run {other.parent.name} in {words}"
        return None
    return None


def write_error(run_dir: Path, rank: int, kind: str, message: str, **more: Any) -> None:
    """Write `logs/error-rank<n>.json`. Without `more`, it is written on behalf of a rank and sorts before all others."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    cause: dict[str, Any] = {"time": 0.0, "problems": [message], "expected": True, "traceback": "", "exit_code": 1}
    report = {**cause, "rank": rank, "kind": kind, "message": message}
    if more:
        report |= {"time": time.time(), **more}
    beside = folder / f".error-rank{rank}.json"
    clean = {key: redaction.mask(value) if isinstance(value, str) else value for key, value in report.items()}
    clean["problems"] = [redaction.mask(problem) for problem in report["problems"]]
    beside.write_text(json.dumps(clean, indent=2), encoding="utf-8")
    beside.replace(folder / f"error-rank{rank}.json")
