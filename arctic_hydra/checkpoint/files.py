"""Durable files: written beside, hashed while writing, fsynced, renamed; and directories that trade places."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

CHUNK_BYTES = 4 * 1024 * 1024
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class FileRecord:
    """What a file held when it was written."""

    bytes: int
    sha256: str


class HashingWriter:
    """A sequential binary file that hashes what passes through it and keeps the first OSError it met.

    torch's zip writer replaces an error of the file below it (a full disk) by a text of its own; the kept one says why.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self._count = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data` and return its length in bytes."""
        view = memoryview(data).cast("B")
        try:
            self._raw.write(view)
        except OSError as error:
            self.error = self.error or error
            raise
        self._hash.update(view)
        self._count += len(view)
        return len(view)

    def flush(self) -> None:
        """Hand buffered bytes to the system."""
        self._raw.flush()

    @property
    def record(self) -> FileRecord:
        """Size and hash of everything written so far."""
        return FileRecord(self._count, self._hash.hexdigest())


def write_durably(path: Path, write: Callable[[HashingWriter], object]) -> FileRecord:
    """Create `path` from what `write` writes: first as `<path>.part`, fsynced, then renamed. Raises OSError."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as raw:
        writer = HashingWriter(raw)
        try:
            write(writer)
            raw.flush()
        except Exception:
            if writer.error is not None:
                raise writer.error from None
            raise
        os.fsync(raw.fileno())
    os.replace(part, path)
    return writer.record


def sync_folder(path: Path) -> None:
    """Make the entries of the directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Make every file and directory below `path` durable; for files that a library wrote by itself."""
    for folder, _, names in os.walk(path):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(folder))


def hash_file(path: Path) -> FileRecord:
    """Return size and sha256 of `path`. Raises OSError."""
    digest, count = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            count += len(chunk)
    return FileRecord(count, digest.hexdigest())


def synced_size(path: Path) -> int:
    """Return the length of a file in bytes, durable on disk; 0 when it does not exist yet."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def publish_folder(stage: Path, target: Path) -> None:
    """Give the finished directory `stage` the name `target`, durably; what stood there is removed afterwards.

    Where the system can exchange two names in one step (Linux), `target` exists at every moment.
    """
    parent = target.parent
    if target.exists():
        doomed = parent / f".del-{target.name}"
        remove_folder(doomed)
        if _exchange(stage, target):
            os.rename(stage, doomed)
        else:
            os.rename(target, doomed)
            os.rename(stage, target)
        sync_folder(parent)
        remove_folder(doomed)
    else:
        os.rename(stage, target)
        sync_folder(parent)


def remove_published_folder(path: Path) -> None:
    """Remove a published directory: renamed first, so that a half removed one is never taken for a good one."""
    doomed = path.with_name(f".del-{path.name}")
    remove_folder(doomed)
    os.rename(path, doomed)
    remove_folder(doomed)


def remove_folder(path: Path) -> None:
    """Remove the directory `path` if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    result = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(result == 0)


@cache
def _renameat2() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None
