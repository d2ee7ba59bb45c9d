"""Cache entries: built by one process while others wait, published atomically, and rebuilt if damaged."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from arctic_hydra.data.cache.token_store import EXAMPLES, MANIFEST, DamagedEntryError, TokenStore
from arctic_hydra.errors import DataError
from arctic_hydra.files.ownership import folder_problem, reading_problem, remedy

KEY = re.compile("[0-9a-f]{32}")
"""Pattern of an entry's name, as returned by `prepare.key.cache_key`."""

PREPARED, SCORES = "prepared", "scores"
"""Folders of a cache: of tokenized data, and of the scores that `trainer.scoring` stores."""
ABOUT = "about.json"
"""File of an entry of scores that says what they depend on; it is touched when they are used."""

log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Return the user's cache directory for this package, following the XDG specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "arctic_hydra"


def build_private(key: str, build: Callable[[Path], None]) -> TokenStore:
    """Build in a temporary directory that is deleted before this returns; the store remains readable."""
    with (
        _explain_full_disk(_temporary_directory_full),
        tempfile.TemporaryDirectory(prefix="arctic_hydra-", ignore_cleanup_errors=True) as name,
    ):
        build(Path(name))
        return TokenStore(Path(name), key)


def open_or_build(cache_dir: Path, key: str, build: Callable[[Path], None], *, is_named: bool = False) -> TokenStore:
    """Return entry `key` of the cache, built by exactly one process; the others wait for its lock.

    If the builder is killed, the operating system releases the lock and another process builds the entry. From a cache of
    another user, entries are only read, and only if the user named it (`is_named`): they hold tokens, but no code.
    """
    root = cache_dir / PREPARED
    entry = root / key
    if problem := cache_problem(cache_dir):
        if is_named and (shared := _read_shared(cache_dir, key)):
            return shared
        raise DataError(f"data.cache_dir: {problem}, or pass data.cache_dir=<another directory> or data.cache=off")
    try:
        store = TokenStore(entry, key)
        _mark_used(entry)
        return store
    except DamagedEntryError:
        pass  # missing or damaged: checked again under the lock
    _make_private(root)
    with _locked(lock_of(entry)):
        try:
            if os.path.lexists(entry):
                try:
                    return TokenStore(entry, key)  # built by another process in the meantime
                except DamagedEntryError as damage:
                    log.warning("cached data in %s is damaged (%s); rebuilding it", entry, damage)
                    remove_entry(entry)
            for leftover in leftovers(root, key):  # no other process uses them, because this one holds the lock
                remove_entry(leftover)
        except OSError as error:
            raise _cache_unwritable(root, error) from error
        with _explain_full_disk(partial(_cache_unwritable, root)):
            part = Path(tempfile.mkdtemp(prefix=f"{key}.part-", dir=root))
            try:
                build(part)
                part.rename(entry)
            finally:
                shutil.rmtree(part, ignore_errors=True)  # does nothing after the rename
            _sync_directory(root)
        return TokenStore(entry, key)  # under the lock, so that it cannot be deleted before it is open


def cache_problem(cache_dir: Path, *folders: str) -> str | None:
    """Return why a cache, and `folders` of it besides `prepared`, must be neither read nor pruned, and what to do, or None.

    The user's directory may be a link.
    """
    for path, follow in ((cache_dir, True), *((cache_dir / name, False) for name in (PREPARED, *folders))):
        if problem := folder_problem(path, follow=follow):
            inside = f", or use a new directory in it: {cache_dir}/<name>" if os.access(cache_dir, os.W_OK) else ""
            return f"{path} {problem}; {remedy(problem)}{inside}"
    return None


def _read_shared(cache_dir: Path, key: str) -> TokenStore | None:
    """Return an entry of another user's cache to which nobody else could have written, or None."""
    root = cache_dir / PREPARED
    entry = root / key
    if reading_problem(cache_dir, [root, entry, entry / MANIFEST, entry / EXAMPLES]):
        return None
    try:
        return TokenStore(entry, key, of_others=True)
    except DamagedEntryError as damage:
        log.warning("cached data in %s, which another user owns, is damaged (%s)", entry, damage)
        return None


def _mark_used(entry: Path) -> None:
    try:
        os.utime(entry / MANIFEST)  # read by `data.cache prune --older-than`
    except OSError:
        pass  # a read-only cache


@contextmanager
def _locked(lock: FileLock) -> Iterator[None]:
    try:
        lock.acquire(timeout=2)
    except Timeout:
        log.info("waiting for another process that tokenizes the same data (lock %s)", lock.lock_file)
        lock.acquire()
    except OSError as error:  # such as a directory of this name
        raise DataError(
            f"data.cache_dir: cannot lock {lock.lock_file} ({error.strerror}); delete it, or pass data.cache_dir=<directory>"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _make_private(directory: Path) -> None:
    try:
        for path in reversed([directory, *directory.parents]):
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
        if directory.stat().st_uid == os.getuid():
            directory.chmod(0o700)
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _cache_unwritable(directory, error) from error


def _cache_unwritable(directory: Path, error: OSError) -> DataError:
    return DataError(
        f"data.cache_dir: cannot write to {directory} ({error.strerror}); expected a writable directory with enough space; "
        f"pass data.cache_dir=<directory>, or data.cache=off"
    )


def _temporary_directory_full(error: OSError) -> DataError:
    return DataError(
        f"data.cache: off stores tokenized data in {tempfile.gettempdir()}, which cannot be written ({error.strerror}); "
        f"expected space for the tokens of all sources; set the environment variable TMPDIR, or pass data.cache=on"
    )


@contextmanager
def _explain_full_disk(as_data_error: Callable[[OSError], DataError]) -> Iterator[None]:
    """Convert the error of a full disk to one that names the directory and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise as_data_error(error) from error
        raise


def leftovers(root: Path, key: str = "*") -> list[Path]:
    """Return the directories of unfinished builds and deletions of an entry, whether running or killed."""
    return [path for what in ("part-*", "removed*") for path in root.glob(f"{key}.{what}")]


def remove_entry(directory: Path) -> None:
    """Delete an entry, complete or not, or a link or file in its place; the caller holds its lock.

    Readers no longer find it even if the deletion is interrupted; those that have it open keep their mapping.
    """
    if directory.is_symlink() or not directory.is_dir():
        directory.unlink()
        return
    key = directory.name.partition(".")[0]
    doomed = Path(tempfile.mkdtemp(prefix=f"{key}.removed-", dir=directory.parent))
    try:
        directory.rename(doomed)  # replaces the empty directory, whose name is unique
    finally:
        shutil.rmtree(doomed, ignore_errors=True)


def lock_of(entry: Path) -> FileLock:
    """Return the lock that the builder of an entry holds; the operating system releases it when the process ends."""
    return FileLock(entry.with_name(f"{entry.name.partition('.')[0]}.lock"), mode=0o600)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
