"""The lock of a directory, and signals to the process that holds it.

The kernel knows who holds a lock; what a file says about a process may be old, copied or forged. So a process is signalled
only after `/proc` has shown that it holds the lock, through a handle that no later process of the same id can take over.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

from arctic_hydra.errors import RunLockedError, StateFileError
from arctic_hydra.files.state_file import check_trusted, open_regular, open_to_read

_TEXT_BYTES = 1000
_LOOK_SECONDS = 0.3
"""Longer than any `holder` of another process shares the lock."""
_HOLDER = re.compile(r"process (\d{1,10}) on (\S+), since [\d: -]+")
_OURS = re.compile(r"(?:process \d.*)?")
"""The text of a lock of this package, which a crash or a full disk may have cut off or left empty."""


class LockFile:
    """The file `.lock` of a directory; its text names the holder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None

    def acquire(self, patience_seconds: float = 0.0) -> int:
        """Lock for this process and return the file descriptor, which a child may inherit.

        Raises RunLockedError, naming the holder, if another process still holds the lock after `patience_seconds`, and
        StateFileError if the path is not a file that this user alone can write, or not one that this package wrote.
        """
        end = time.monotonic() + max(patience_seconds, _LOOK_SECONDS)
        handle = os.fdopen(open_regular(self.path, os.O_RDWR | os.O_CREAT), "r+", errors="replace")
        try:
            self._check(handle)
            while not _try(handle.fileno(), fcntl.LOCK_EX):
                if time.monotonic() >= end:
                    raise RunLockedError(
                        f"{self.path.parent} is in use by another run ({_text(handle)}); wait until it ends, or stop it"
                    )
                time.sleep(0.1)
            handle.seek(0)
            handle.truncate()
            handle.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            handle.flush()
        except BaseException:
            handle.close()
            raise
        self._handle = handle
        return int(handle.fileno())

    def release(self) -> None:
        """Release the lock of this process; children that inherited the descriptor hold it until they exit."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def holder(self) -> str | None:
        """Return the holder (`process <pid> on <host>, since <time>`, or `unknown`), or None if the lock is free."""
        try:
            handle = os.fdopen(open_to_read(self.path, "use a directory of your own"), "r", errors="replace")
        except FileNotFoundError:
            return None
        with handle:
            return None if _try(handle.fileno(), fcntl.LOCK_SH) else _text(handle)

    @staticmethod
    def process_here(holder: str) -> int | None:
        """Return the process id in the text of a lock, or None for a process of another machine."""
        match = _HOLDER.fullmatch(holder)
        return int(match[1]) if match and match[2] == socket.gethostname() else None

    def terminate(self, process: int) -> bool:
        """Send SIGTERM to a process of this machine if it holds the lock; return whether it was sent."""
        try:
            handle = os.pidfd_open(process)
        except (OSError, ValueError, OverflowError):
            return False
        try:
            if not self.is_held_by(process):
                return False
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)

    def is_held_by(self, process: int) -> bool:
        """Whether a process of this machine has the locked file open, itself or inherited from the process that locked it."""
        try:
            mine = self.path.lstat()
            folder = f"/proc/{process}"
            for number in os.listdir(f"{folder}/fd"):
                try:
                    if os.path.samestat(os.stat(f"{folder}/fd/{number}"), mine):
                        text = Path(f"{folder}/fdinfo/{number}").read_text(encoding="ascii", errors="replace")
                        if re.search(r"^lock:\s.*\bFLOCK\b.*\bWRITE\b", text, re.MULTILINE):
                            return True
                except OSError:
                    continue  # closed meanwhile
        except OSError:
            pass  # no such process, or another user's
        return False

    def _check(self, handle: Any) -> None:
        info = os.fstat(handle.fileno())
        check_trusted(self.path, info)
        if info.st_nlink > 1:  # its other name would be overwritten too
            raise StateFileError(
                f"{self.path}: has {info.st_nlink} names (hard links), expected 1; delete it and try again"
            )
        handle.seek(0)
        if not _OURS.fullmatch(handle.read(_TEXT_BYTES).strip("\0\n ")):
            raise StateFileError(
                f"{self.path}: is the file of another program, expected a lock of this package; use another directory, or delete it"
            )


def _try(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StateFileError(
            f"the file system does not support locks ({error.strerror}); choose another folder with output_root=<folder>"
        ) from error
    return True


def _text(handle: Any) -> str:
    handle.seek(0)
    text = handle.read(_TEXT_BYTES).strip()
    return text if text.isprintable() and text else "unknown"
