"""The run directory: its lock, the files that say what the run is, and how it ended."""

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

from arctic_hydra.component import flatten
from arctic_hydra.errors import ConfigError, RunLockedError

PROGRAM = "python -m arctic_hydra"
"""What a person types."""
FINISHED, STOPPED, FAILED, RUNNING = "finished", "stopped", "failed", "running"
RESERVED_NAMES = frozenset(
    "checkpoints config.yaml logs metrics.jsonl preview.html record.json report.html result.json run.json stop".split()
)
"""Files and folders that a run keeps in its directory, in lower case: exports and trackers need other names."""
RESERVED_PREFIXES = ("task-", "tracking-")
"""What the names of folders of tasks and of trackers' files begin with."""
LOCK_GRACE_SECONDS = 5.0
"""How long processes of a sweep that was just killed may need to let go of a directory."""


class RunDirectory:
    """One run's directory; methods that write are for the composing process and for rank 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None

    @property
    def run_file(self) -> Path:
        """What a rank reads: the composed config and the command."""
        return self.path / "run.json"

    @property
    def record_file(self) -> Path:
        """What the run is and how it ended."""
        return self.path / "record.json"

    @property
    def result_file(self) -> Path:
        """What rank 0 leaves for the composing process."""
        return self.path / "result.json"

    def task_directory(self, task: str) -> RunDirectory:
        """Return the folder of a task that works on this run, with logs and a result of its own."""
        return RunDirectory(self.path / f"task-{task}")

    def create(self, key: str = "output_root") -> None:
        """Make the directory, private to the user; raises ConfigError where that cannot be done, naming what placed it."""
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
        """Hold the directory for this process and return the descriptor, which a child may inherit.

        Raises RunLockedError that names the holder when another live process has it, also after `patience_seconds`.
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
                    f"{self.path} is in use by another run ({holder}); wait for it, or stop it"
                ) from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        handle.flush()
        self._lock = handle
        return handle.fileno()

    def release(self) -> None:
        """Give up this process's hold; the directory stays locked until the children that inherited it are gone too."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def holder(self) -> str | None:
        """Return who holds the directory now (`process <pid> on <host>, since <when>`), None where nobody does."""
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
        """Delete everything in the directory but the lock."""
        for item in self.path.iterdir():
            if item.name != ".lock":
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()

    def record(self) -> dict[str, Any]:
        """Return the record, empty where there is none."""
        return read_json(self.record_file)

    def update_record(self, **values: Any) -> None:
        """Set values of the record."""
        write_json(self.record_file, {**self.record(), **values})

    def result(self) -> dict[str, Any]:
        """Return what rank 0 left, empty where it did not get that far."""
        return read_json(self.result_file)

    def errors(self) -> list[dict[str, Any]]:
        """Return the errors that ranks left, the earliest first."""
        found = [read_json(path) for path in (self.path / "logs").glob("error-rank*.json")]
        return sorted(found, key=lambda error: float(error["time"]))

    def error_files(self) -> set[tuple[str, int]]:
        """Return name and time of change of the errors that ranks left: what tells a new one from an old one."""
        return {(path.name, path.stat().st_mtime_ns) for path in (self.path / "logs").glob("error-rank*.json")}

    def node_file(self, index: int) -> Path:
        """What the agent of machine `index` leaves when it ends."""
        return self.path / "logs" / f"node{index}.ended"

    @property
    def rendezvous_file(self) -> Path:
        """What the first machine's agent leaves once the agents of all machines have met."""
        return self.path / "logs" / "nodes.met"

    def write_node_exit(self, index: int, code: int) -> None:
        """Write that the agent of machine `index` ended with an exit code, negative for a signal."""
        if not self.path.is_dir():
            return  # a run of this machine's own, which the first machine knows nothing of
        self.node_file(index).parent.mkdir(exist_ok=True)
        self.node_file(index).write_text(f"{code}\n", encoding="utf-8")

    def clear_outcome(self) -> None:
        """Remove what an earlier start of this run left about its end, in files and in the record."""
        self.result_file.unlink(missing_ok=True)
        before = self.record()
        kept = {key: value for key, value in before.items() if key not in ("result", "error")}
        if kept != before:
            write_json(self.record_file, kept)
        for pattern in ("error-rank*.json", "node*.ended", "nodes.met"):
            for path in (self.path / "logs").glob(pattern):
                path.unlink()


def is_reserved_name(name: str) -> bool:
    """Whether a run keeps something of its own under `name` in its directory; case does not count, as on some file systems."""
    return name.lower() in RESERVED_NAMES or name.lower().startswith(RESERVED_PREFIXES)


def relative(path: Path) -> Path:
    """Return a path below the working directory without that part."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, empty where it is absent."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # type: ignore[no-any-return]


def write_json(path: Path, value: dict[str, Any], mode: int = 0o644) -> None:
    """Replace a JSON file in one step, so that a reader never sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=2, default=str)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    beside.replace(path)


def difference_from_last_finished(path: Path, identity: dict[str, Any]) -> str | None:
    """Say in what a run differs from the latest finished run beside it, if in five values at most."""
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
    """Write `logs/error-rank<n>.json`; for a rank that could not do so itself, a `cause` before all other errors."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    cause = {"time": 0.0, "problems": [message], "expected": True, "traceback": "", "exit_code": 1}
    report = {**cause, "rank": rank, "kind": kind, "message": message}
    if more:
        report |= {"time": time.time(), **more}
    beside = folder / f".error-rank{rank}.json"
    beside.write_text(json.dumps(report, indent=2), encoding="utf-8")
    beside.replace(folder / f"error-rank{rank}.json")
