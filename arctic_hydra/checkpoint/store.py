"""The save protocol: published checkpoints are complete, loaded ones are verified, and all ranks agree on both.

    begin     rank 0 removes leftovers and creates `.tmp-step-00000100`
    write     every rank: each file as `.part`, hashed while writing, fsynced, renamed; an error is kept, not raised
    agree     errors of all ranks are gathered: all ranks raise the same CheckpointError, or none does
              (a background save does this twice: after copying the contents, and after writing the files)
    publish   rank 0: manifest, rename to `step-00000100`, `latest`, prune

`latest` is for users and other tools; loading does not use it. This module does not know the contents of the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arctic_hydra import distributed
from arctic_hydra.checkpoint.files import (
    FileRecord,
    HashingWriter,
    hash_file,
    publish_folder,
    remove_folder,
    remove_published_folder,
    sync_folder,
    write_durably,
)
from arctic_hydra.errors import CheckpointError
from arctic_hydra.files.ownership import check_folder, folder_problem, kind_of
from arctic_hydra.files.state_file import Entries, Schema, Table, at_least_0, is_inside, is_text, read_state
from arctic_hydra.human_numbers import quantity

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_FILE = Schema(
    "the checkpoint is not used",
    Table(
        {
            "step": at_least_0,
            "files": Entries(is_inside, Table({"bytes": at_least_0, "sha256": str})),
            "self_sha256": str,
        },
        {
            "world_size": int,
            "identity": dict,
            "progress": dict,
            "evaluation": dict,
            "recent_losses": [(float, None)],
            "metric": (Table({"rank_by": float}), None),
            "stop_tokens": ([int], None),
            "adapter": dict,
            "log_offsets": Entries(is_text, at_least_0),
        },
    ),
    formats=(FORMAT, FORMAT),
)
_STEP = re.compile(r"step-(\d{8,})")
_READERS = 4

logger = logging.getLogger("arctic_hydra.checkpoint")


def step_name(step: int) -> str:
    """Return the directory name of the checkpoint after optimizer step `step`: `step-00000100`."""
    return f"step-{step:08d}"


@dataclass
class Stage:
    """A checkpoint that this rank is writing; errors are kept until `CheckpointStore.agree` raises them on all ranks."""

    step: int
    path: Path
    files: dict[str, FileRecord] = field(default_factory=dict)
    error: str | None = None

    def write(self, name: str, write: Callable[[HashingWriter], object]) -> None:
        """Write one file of this rank; does nothing after an error."""
        if self.error is None:
            with self.keep_error():
                self.files[name] = write_durably(self.path / name, write)

    def keep_error(self) -> _KeepError:
        """Return a context that stores an exception as this rank's error instead of raising it."""
        return _KeepError(self)


class _KeepError:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self._stage.error = self._stage.error or f"{type(error).__name__}: {error}"
            return True
        return False


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint whose manifest and files have been verified."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return int(self.manifest["step"])


class CheckpointStore:
    """The directory `root` with the `step-*` checkpoints; every public method except `steps` is collective."""

    def __init__(
        self, root: Path, rank: int, keep_last: int | None = None, keep_best: int = 0, *, of_others: bool = False
    ) -> None:
        """`of_others` accepts checkpoints of other users, for a path that the user named."""
        self.root = root
        self._of_others = of_others
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._is_main = rank == 0
        self._rejected: set[str] = set()

    def steps(self) -> list[Path]:
        """Return the directories of published checkpoints, newest first, without verifying them."""
        if not self.root.is_dir():
            return []
        found = [(int(match[1]), path) for path in self.root.iterdir() if (match := _STEP.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]

    # ---- save ----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> Stage:
        """Create the stage directory of `step`, on rank 0. Raises CheckpointError on every rank if that fails."""
        stage = Stage(step, self.root / f".tmp-{step_name(step)}")
        if self._is_main:
            with stage.keep_error():
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                check_folder(self.root)
                for leftover in {*self.root.glob(".tmp-*"), *self.root.glob(".del-*")} - {stage.path}:
                    with suppress(OSError):  # such as one with a file that another process has open on NFS
                        remove_folder(leftover)
                remove_folder(stage.path)
                self._check_space()
                stage.path.mkdir(mode=0o700)
        self._raise_on_all_ranks(stage, distributed.broadcast_object([stage.error]))
        return stage

    def agree(self, stage: Stage) -> None:
        """Gather the file records of all ranks. Raises the same CheckpointError on every rank if any rank failed."""
        if stage.error is None:
            with stage.keep_error():
                sync_folder(stage.path)
        gathered = distributed.gather_objects((stage.error, stage.files))
        self._raise_on_all_ranks(stage, [error for error, _ in gathered])
        stage.files = {name: record for _, files in gathered for name, record in files.items()}

    def publish(self, stage: Stage, facts: dict[str, Any]) -> Path:
        """Write the manifest (`facts` and the file records), rename the stage and prune; return the published directory.

        Rank 0 does the work, with its `facts`. Raises CheckpointError on every rank if publishing failed.
        """
        target = self.root / step_name(stage.step)
        if self._is_main:
            with stage.keep_error():
                _check_all_recorded(stage)
                _write_manifest(stage, facts)
                publish_folder(stage.path, target)
                self._rejected.discard(target.name)
                self._update_latest_and_prune(target)
        self._raise_on_all_ranks(stage, distributed.broadcast_object([stage.error]))
        return target

    def _check_space(self) -> None:
        """Raise OSError if there is too little space for a checkpoint of about the size of the newest one."""
        for newest in self.steps()[:1]:
            needed = int(1.1 * sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()))
            free = shutil.disk_usage(self.root).free
            if free < needed:
                gib = 1 << 30
                raise OSError(f"{free / gib:.3g} GiB free below {self.root}, {needed / gib:.3g} GiB needed")

    def _update_latest_and_prune(self, target: Path) -> None:
        """Update `latest` and prune. The checkpoint is already published, so a failure only logs a warning."""
        try:
            write_durably(self.root / "latest", lambda file: file.write(f"{target.name}\n".encode()))
            sync_folder(self.root)
            self._prune()
        except OSError as error:
            logger.warning(
                "%s is complete, but updating `latest` or pruning in %s failed: %s", target.name, self.root, error
            )

    def _prune(self) -> None:
        """Remove checkpoints older than the newest `keep_last` valid ones, except the best; damaged ones do not count."""
        if self.keep_last is None:
            return
        kept, best = 0, [path for path in self._ranked() if self._counts(path)][: self.keep_best]
        for path in self.steps():
            if kept >= self.keep_last:
                if path not in best:
                    remove_published_folder(path)
            elif self._counts(path):
                kept += 1

    def _counts(self, path: Path) -> bool:
        """Whether a checkpoint is undamaged, as far as its sizes and earlier attempts to load it tell."""
        return path.name not in self._rejected and _find_damage(path, full=False, of_others=self._of_others) is None

    def _raise_on_all_ranks(self, stage: Stage, errors: list[str | None]) -> None:
        failed = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error is not None]
        if not failed:
            return
        if self._is_main:
            shutil.rmtree(stage.path, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {stage.step} below {self.root} was not saved and nothing was published; "
            f"earlier ones are unchanged. {'; '.join(failed)}. Remove the cause (often a full disk, or a directory that is not "
            "writable), then start the run again: it resumes from the newest valid checkpoint"
        )

    # ---- load ----------------------------------------------------------------------------------------------------

    def newest(self) -> Checkpoint | None:
        """Return the newest valid checkpoint, the same on every rank; None if there are no checkpoints.

        Rank 0 verifies the files. Raises CheckpointError on every rank if there are checkpoints but none is valid.
        """
        found: tuple[Path, dict[str, Any]] | None = None
        problem: str | None = None
        if self._is_main:
            try:
                found, problem = self._find_newest_valid()
            except OSError as error:
                problem = f"{self.root} cannot be read: {error}"
        found, problem = distributed.broadcast_object((found, problem))
        if problem is not None:
            raise CheckpointError(problem)
        return None if found is None else Checkpoint(*found)

    def _find_newest_valid(self) -> tuple[tuple[Path, dict[str, Any]] | None, str | None]:
        rejected: list[str] = []
        for path in self.steps():
            damage = _find_damage(path, full=True, of_others=self._of_others)
            if damage is None:
                return (path, _read_manifest(path, self._of_others)), None
            logger.warning("rejected checkpoint %s: %s", path, damage)
            self._rejected.add(path.name)
            rejected.append(f"{path.name}: {damage}")
        if not rejected:
            return None, None
        return None, (
            f"{self.root} contains {quantity(len(rejected), 'checkpoint')}, but none is usable, so the run does not "
            f"silently start from step 0. {'; '.join(rejected)}. Restore one of them, or pass fresh=true to discard them and start over"
        )

    def at(self, step: int) -> Checkpoint:
        """Return the verified checkpoint of `step`. Raises CheckpointError on every rank if it is missing or damaged."""
        return self.verified(self.root / step_name(step))

    def best(self) -> Checkpoint:
        """Return the verified checkpoint with the best metric, among those saved with a metric."""
        path, problem = None, None
        if self._is_main:
            ranked = self._ranked()
            path = ranked[0] if ranked else None
            if path is None:
                problem = (
                    f"{self.root} holds no checkpoint with a metric, so none can be the best; set "
                    "checkpoint.deepspeed.keep_best and evaluate during training, or choose a step"
                )
        path, problem = distributed.broadcast_object((path, problem))
        if path is None:
            raise CheckpointError(problem)
        return self.verified(path)

    def verified(self, path: Path) -> Checkpoint:
        """Return the checkpoint in `path` after verifying every hash. Raises CheckpointError on every rank if it is invalid."""
        damage: str | None = None
        if self._is_main:
            damage = "there is no such directory"
            if path.is_dir():
                damage = _find_damage(path, full=True, of_others=self._of_others)
        damage = distributed.broadcast_object(damage)
        if damage is not None:
            steps = ", ".join(str(int(found.name.removeprefix("step-"))) for found in self.steps()) or "none"
            raise CheckpointError(
                f"checkpoint {path} cannot be used: {damage}. Steps below {self.root}: {steps}; "
                "pass from_checkpoint=<step>, or the path of another checkpoint"
            )
        return Checkpoint(path, _read_manifest(path, self._of_others))

    def _ranked(self) -> list[Path]:
        """Return the checkpoints with a finite metric, best first, newer ones first among equals."""
        metrics: list[tuple[float, Path]] = []
        for path in self.steps():
            try:
                value = _read_manifest(path, self._of_others).get("metric")
            except (OSError, ValueError):
                continue
            if value is not None and math.isfinite(value["rank_by"]):
                metrics.append((value["rank_by"], path))
        return [path for _, path in sorted(metrics, key=lambda item: item[0])]


def _check_all_recorded(stage: Stage) -> None:
    """Raise RuntimeError if the stage has files that no rank recorded, which have no hash, or lacks recorded files."""
    found = {str(path.relative_to(stage.path)) for path in stage.path.rglob("*") if path.is_file()}
    if unknown := sorted(found - stage.files.keys()):
        raise RuntimeError(f"files that did not pass through the store: {', '.join(unknown)}")
    if missing := sorted(stage.files.keys() - found):
        raise RuntimeError(f"files that other ranks wrote are not visible to rank 0: {', '.join(missing)}")


def _write_manifest(stage: Stage, facts: dict[str, Any]) -> None:
    files = {name: asdict(record) for name, record in sorted(stage.files.items())}
    # A round trip through JSON, so that the digest covers what a reader gets (tuples as lists, keys as strings).
    body = json.loads(json.dumps({"format": FORMAT, "step": stage.step, **facts, "files": files}))
    text = json.dumps({**body, "self_sha256": _digest(body)}, indent=1)
    write_durably(stage.path / MANIFEST, lambda file: file.write(text.encode()))
    sync_folder(stage.path)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path, of_others: bool) -> dict[str, Any]:
    """Return the manifest of a checkpoint. Raises ValueError or OSError whose text describes the damage."""
    if not of_others and (problem := folder_problem(path)):
        raise ValueError(f"it {problem}")
    manifest = read_state(path / MANIFEST, MANIFEST_FILE, of_others=of_others)
    if manifest is None:
        raise ValueError(f"{MANIFEST} is missing: the checkpoint is incomplete")
    if manifest.pop("self_sha256") != _digest({"format": FORMAT, **manifest}):
        raise ValueError(f"{MANIFEST} was changed after it was written (its own sha256 differs)")
    return manifest


def _find_damage(path: Path, *, full: bool, of_others: bool) -> str | None:
    """Return the damage of a published checkpoint, or None; `full` also verifies hashes, otherwise only sizes."""
    try:
        files: dict[str, dict[str, Any]] = _read_manifest(path, of_others)["files"]
    except (OSError, ValueError) as error:
        return str(error)
    for name, expected in files.items():
        try:
            info = os.lstat(path / name)
        except OSError as error:
            return f"{name} is missing ({error.strerror})"
        if not stat.S_ISREG(info.st_mode) or not (path / name).resolve().is_relative_to(path.resolve()):
            return f"{name} is {kind_of(info)}, expected a file in the checkpoint itself"
        if info.st_size != expected["bytes"]:
            return f"{name} has {info.st_size} bytes, expected {expected['bytes']}"
    if not full:
        return None
    with ThreadPoolExecutor(_READERS) as pool:
        return next(_mismatches(path, files, pool), None)


def _mismatches(path: Path, files: dict[str, dict[str, Any]], pool: ThreadPoolExecutor) -> Iterator[str]:
    hashes = {name: pool.submit(hash_file, path / name) for name in files}
    for name, pending in hashes.items():
        try:
            actual = pending.result().sha256
        except OSError as error:
            yield f"{name} cannot be read ({error})"
            continue
        if actual != files[name]["sha256"]:
            yield f"{name} is damaged: its sha256 is {actual[:12]}..., expected {files[name]['sha256'][:12]}..."
