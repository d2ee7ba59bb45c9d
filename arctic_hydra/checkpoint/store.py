"""The save protocol: what is published is complete, what is loaded was verified, and all ranks agree on both.

    begin     rank 0 removes leftovers and creates `.tmp-step-00000100`
    write     every rank: each file as `.part`, hashed while writing, fsynced, renamed; an error is kept, not raised
    agree     errors of all ranks are gathered: all ranks raise the same CheckpointError, or none does
              (a save in the background agrees twice: that all contents are copied, and that all files are written)
    publish   rank 0: manifest, rename to `step-00000100`, `latest`, prune

`latest` is for people and other tools: loading never trusts it. Nothing here knows what the files hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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

FORMAT = 1
MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d{8,})")
_READERS = 4

logger = logging.getLogger("arctic_hydra.checkpoint")


def step_name(step: int) -> str:
    """Return the directory name of the checkpoint after optimizer step `step`: `step-00000100`."""
    return f"step-{step:08d}"


@dataclass
class Stage:
    """A checkpoint being written by this rank; errors are kept until all ranks agree on them."""

    step: int
    path: Path
    files: dict[str, FileRecord] = field(default_factory=dict)
    error: str | None = None

    def write(self, name: str, write: Callable[[HashingWriter], object]) -> None:
        """Write one file of this rank; after a first error nothing more is written."""
        if self.error is None:
            with self.keep_error():
                self.files[name] = write_durably(self.path / name, write)

    def keep_error(self) -> _KeepError:
        """Return a context that keeps an exception as this rank's error instead of raising it."""
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
    """A published checkpoint whose manifest and files were verified."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return int(self.manifest["step"])


class CheckpointStore:
    """The directory `root` that holds `step-*` checkpoints; every public method but `steps` is collective."""

    def __init__(self, root: Path, rank: int, keep_last: int | None = None, keep_best: int = 0) -> None:
        self.root = root
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._is_main = rank == 0
        self._rejected: set[str] = set()

    def steps(self) -> list[Path]:
        """Return the directories of published checkpoints, newest first, unverified."""
        if not self.root.is_dir():
            return []
        found = [(int(match[1]), path) for path in self.root.iterdir() if (match := _STEP.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]

    # ---- save ----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> Stage:
        """Create the stage directory of `step` on all ranks' behalf. Raises CheckpointError on every rank."""
        stage = Stage(step, self.root / f".tmp-{step_name(step)}")
        if self._is_main:
            with stage.keep_error():
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                for leftover in [*self.root.glob(".tmp-*"), *self.root.glob(".del-*")]:
                    remove_folder(leftover)
                self._check_space()
                stage.path.mkdir(mode=0o700)
        self._raise_on_all_ranks(stage, distributed.broadcast_object([stage.error]))
        return stage

    def agree(self, stage: Stage) -> None:
        """Collect what every rank wrote. Raises the same CheckpointError on all ranks if any rank failed."""
        if stage.error is None:
            with stage.keep_error():
                sync_folder(stage.path)
        gathered = distributed.gather_objects((stage.error, stage.files))
        self._raise_on_all_ranks(stage, [error for error, _ in gathered])
        stage.files = {name: record for _, files in gathered for name, record in files.items()}

    def publish(self, stage: Stage, facts: dict[str, Any]) -> Path:
        """Write the manifest (`facts` and the files), rename the stage, and prune; return the published directory.

        Rank 0 works, with its facts; all ranks return together. Raises CheckpointError on every rank if it could not
        be published.
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
        """Refuse before the first byte rather than at the last: a checkpoint is about as large as the one before."""
        for newest in self.steps()[:1]:
            needed = int(1.1 * sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()))
            free = shutil.disk_usage(self.root).free
            if free < needed:
                gib = 1 << 30
                raise OSError(f"{free / gib:.3g} GiB free below {self.root}, {needed / gib:.3g} GiB needed")

    def _update_latest_and_prune(self, target: Path) -> None:
        """Point `latest` at the new checkpoint and prune; it is published already, so a failure here only warns."""
        try:
            write_durably(self.root / "latest", lambda file: file.write(f"{target.name}\n".encode()))
            sync_folder(self.root)
            self._prune()
        except OSError as error:
            logger.warning("%s is complete, but tidying %s failed: %s", target.name, self.root, error)

    def _prune(self) -> None:
        """Remove what is older than the newest `keep_last` good checkpoints, but the best; damaged ones do not count."""
        if self.keep_last is None:
            return
        kept, best = 0, self._ranked()[: self.keep_best]
        for path in self.steps():
            if kept >= self.keep_last:
                if path not in best:
                    remove_published_folder(path)
            elif path.name not in self._rejected and _find_damage(path, full=False) is None:
                kept += 1

    def _raise_on_all_ranks(self, stage: Stage, errors: list[str | None]) -> None:
        failed = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error is not None]
        if not failed:
            return
        if self._is_main:
            shutil.rmtree(stage.path, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {stage.step} below {self.root} was not saved and nothing was published; "
            f"earlier ones are untouched. {'; '.join(failed)}. Free space or make the directory writable, "
            "then run the same command again: it resumes from the newest good checkpoint"
        )

    # ---- load ----------------------------------------------------------------------------------------------------

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, the same on every rank; None when there is none at all.

        Rank 0 reads and hashes. Raises CheckpointError on every rank when there are some and none is usable.
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
            damage = _find_damage(path, full=True)
            if damage is None:
                return (path, _read_manifest(path)), None
            logger.warning("checkpoint %s is rejected: %s", path, damage)
            self._rejected.add(path.name)
            rejected.append(f"{path.name}: {damage}")
        if not rejected:
            return None, None
        return None, (
            f"{self.root} holds {len(rejected)} checkpoint(s), none usable: the run refuses to start from step 0. "
            f"{'; '.join(rejected)}. Restore one of them, or pass fresh=true to give them up and start over"
        )

    def at(self, step: int) -> Checkpoint:
        """Return the checkpoint of `step`, verified. Raises CheckpointError on every rank if it is absent or damaged."""
        return self.verified(self.root / step_name(step))

    def best(self) -> Checkpoint:
        """Return the checkpoint with the best metric, verified; only those saved with one take part."""
        path, problem = None, None
        if self._is_main:
            ranked = self._ranked()
            path = ranked[0] if ranked else None
            if path is None:
                problem = (
                    f"{self.root} holds no checkpoint with a metric, so none is the best; set "
                    "checkpoint.deepspeed.keep_best and evaluate while training, or choose a step"
                )
        path, problem = distributed.broadcast_object((path, problem))
        if path is None:
            raise CheckpointError(problem)
        return self.verified(path)

    def verified(self, path: Path) -> Checkpoint:
        """Return the checkpoint in `path`, every file hashed. Raises CheckpointError on every rank if it is not good."""
        damage: str | None = None
        if self._is_main:
            damage = _find_damage(path, full=True) if path.is_dir() else "there is no such directory"
        damage = distributed.broadcast_object(damage)
        if damage is not None:
            steps = ", ".join(str(int(found.name.removeprefix("step-"))) for found in self.steps()) or "none"
            raise CheckpointError(
                f"checkpoint {path} cannot be used: {damage}. Steps below {self.root}: {steps}; "
                "pass from_checkpoint=<step>, or the path of another checkpoint"
            )
        return Checkpoint(path, _read_manifest(path))

    def _ranked(self) -> list[Path]:
        """Return the checkpoints with a metric, the best (then the newest) first."""
        metrics: list[tuple[float, Path]] = []
        for path in self.steps():
            try:
                value = _read_manifest(path).get("metric")
            except (OSError, ValueError):
                continue
            if value is not None:
                metrics.append((value["rank_by"], path))
        return [path for _, path in sorted(metrics, key=lambda item: item[0])]


def _check_all_recorded(stage: Stage) -> None:
    """A file that no rank reported was not hashed and cannot be verified: better no checkpoint than such a one."""
    found = {str(path.relative_to(stage.path)) for path in stage.path.rglob("*") if path.is_file()}
    if unknown := sorted(found - stage.files.keys()):
        raise RuntimeError(f"files that did not pass through the store: {', '.join(unknown)}")
    if missing := sorted(stage.files.keys() - found):
        raise RuntimeError(f"files that other ranks wrote are not visible to rank 0: {', '.join(missing)}")


def _write_manifest(stage: Stage, facts: dict[str, Any]) -> None:
    files = {name: asdict(record) for name, record in sorted(stage.files.items())}
    # Through JSON once, so that the digest is of exactly what a reader gets back (tuples as lists, keys as strings).
    body = json.loads(json.dumps({"format": FORMAT, "step": stage.step, **facts, "files": files}))
    text = json.dumps({**body, "self_sha256": _digest(body)}, indent=1)
    write_durably(stage.path / MANIFEST, lambda file: file.write(text.encode()))
    sync_folder(stage.path)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint. Raises ValueError or OSError, the text saying what is wrong with it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing: it was never completed") from None
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is not valid JSON ({error})") from None
    body = dict(manifest) if isinstance(manifest, dict) else {}
    if body.pop("self_sha256", None) != _digest(body):
        raise ValueError(f"{MANIFEST} was changed after it was written (its own sha256 differs)")
    if body["format"] != FORMAT:
        raise ValueError(f"{MANIFEST} has format {body['format']}, this version reads {FORMAT}")
    return body


def _find_damage(path: Path, *, full: bool) -> str | None:
    """Return what is wrong with a published checkpoint, or None; `full` hashes every file, else sizes decide."""
    try:
        files: dict[str, dict[str, Any]] = _read_manifest(path)["files"]
    except (OSError, ValueError) as error:
        return str(error)
    for name, expected in files.items():
        try:
            size = os.stat(path / name).st_size
        except OSError as error:
            return f"{name} is missing ({error.strerror})"
        if size != expected["bytes"]:
            return f"{name} has {size} bytes, expected {expected['bytes']}"
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
            yield f"{name} is damaged: sha256 {actual[:12]}..., expected {files[name]['sha256'][:12]}..."
