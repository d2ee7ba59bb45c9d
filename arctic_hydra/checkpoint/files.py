"""Durable files and directories: written under a temporary name, hashed, fsynced and renamed."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from arctic_hydra.files.ownership import check_folder, remove_own_tree

CHUNK_BYTES = 4 * 1024 * 1024
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class FileRecord:
    """Size and hash of a file when it was written."""

    bytes: int
    sha256: str


class HashingWriter:
    """A sequential binary file that hashes its contents and keeps the first OSError.

    torch's zip writer replaces errors of the underlying file (a full disk) by its own; the kept one has the cause.
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
        """Flush buffered bytes to the operating system."""
        self._raw.flush()

    @property
    def record(self) -> FileRecord:
        """Size and hash of everything written so far."""
        return FileRecord(self._count, self._hash.hexdigest())


def write_durably(path: Path, write: Callable[[HashingWriter], object]) -> FileRecord:
    """Create `path` with the contents that `write` produces: `<path>.part` is fsynced, then renamed. Raises OSError."""
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


def copy_beginning(source: Path, target: Path, size: int) -> None:
    """Replace `target` by the first `size` bytes of `source`; the copy is durable once it has its name. Raises OSError."""

    def write(writer: HashingWriter) -> None:
        with open(source, "rb") as raw:
            writer.write(raw.read(size))

    write_durably(target, write)


def sync_folder(path: Path) -> None:
    """Fsync the directory `path`, which makes its entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Fsync every file and directory below `path`; for files that a library has written."""
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
    """Fsync a file and return its size in bytes; 0 if it does not exist."""
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
    """Rename the complete directory `stage` to `target`, durably, replacing an existing one.

    If the system can exchange two names atomically (Linux), `target` exists at all times. Raises UnsafePathError if `target` is
    a link, another user's, or writable by others.
    """
    parent = target.parent
    check_folder(target)
    if target.exists():
        doomed = _free_name(parent / f".del-{target.name}")
        if _exchange(stage, target):
            os.rename(stage, doomed)
        else:
            os.rename(target, doomed)
            os.rename(stage, target)
        sync_folder(parent)
        with suppress(OSError):  # the new folder is published; the next save removes what is left of the old one
            remove_folder(doomed)
    else:
        os.rename(stage, target)
        sync_folder(parent)


def _free_name(path: Path) -> Path:
    """Return `path`, or a similar name if what is there cannot be removed, such as a file that is open on NFS."""
    for name in (path, *(path.with_name(f"{path.name}-{number}") for number in range(1, 100))):
        with suppress(OSError):
            remove_folder(name)
            return name
    return path


def remove_published_folder(path: Path) -> None:
    """Remove a published directory after renaming it, so that a partially removed one is not mistaken for a valid one."""
    doomed = _free_name(path.with_name(f".del-{path.name}"))
    os.rename(path, doomed)
    remove_folder(doomed)


def remove_folder(path: Path) -> None:
    """Remove a directory of this package if it exists; a link in its place is removed, but not what it points to."""
    remove_own_tree(path)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names atomically; return False if the system or the file system does not support it."""
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
