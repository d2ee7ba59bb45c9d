"""Stored scores: a record of fixed size for each supervised position of the documents of one source.

An entry is the directory `scores/<key>`. `about.json` says what the key is made of. Each part, a file in numpy's format, holds the
records of consecutive documents; its name contains a checksum of key, place and content, so that a part that is truncated,
damaged or of another entry is never read. An entry is complete when it has all its parts.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from arctic_hydra.data.cache.entries import ABOUT, SCORES
from arctic_hydra.errors import ConfigError, DataError
from arctic_hydra.files.ownership import folder_problem, remedy
from arctic_hydra.files.state_file import replace_text

_PART = re.compile(r"(\d{6})-([0-9a-f]{16})\.npy")
_UNFINISHED = ".part-"

log = logging.getLogger("arctic_hydra.trainer")

Records = np.ndarray[Any, Any]
"""A structured array: one record for each supervised position."""


class DamagedScoresError(DataError):
    """Stored scores are missing, or differ from what was written."""


def entry_key(about: dict[str, Any]) -> str:
    """Return the key of an entry: a hash of everything that its numbers depend on."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]


def open_root(directory: Path) -> Path:
    """Return the folder of all entries in `directory`, created for this user if it is missing.

    Raises ConfigError if it belongs to someone else or cannot be written.
    """
    root = directory / SCORES
    for path, follow in ((directory, True), (root, False)):
        if problem := folder_problem(path, follow=follow):
            raise ConfigError(
                f"trainer.scores_dir: {path} {problem}; {remedy(problem)}, or pass trainer.scores_dir=<another folder>"
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise _unwritable(root, error) from error
    return root


@dataclass(frozen=True)
class Entry:
    """The scores of one source."""

    path: Path
    about: dict[str, Any]
    """Content that the key is a hash of."""
    dtype: np.dtype[Any]
    """Fields of a record: fp32 or int32, one or several numbers each."""
    sizes: Sequence[int]
    """Number of records in each part."""

    @property
    def key(self) -> str:
        """Name of the directory."""
        return self.path.name

    @property
    def size_bytes(self) -> int:
        """Size of all records."""
        return int(sum(self.sizes)) * self.dtype.itemsize

    def create(self) -> None:
        """Create the directory, and remove partial files of killed processes; the caller holds the lock."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            for leftover in self.path.glob(f"{_UNFINISHED}*"):
                leftover.unlink()
            replace_text(self.path / ABOUT, json.dumps(self.about, indent=1, default=str) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def missing(self) -> list[int]:
        """Return the parts that have to be computed; damaged ones are deleted, with a warning. The caller holds the lock."""
        found, problems = self._verified()
        for path, problem in problems.items():
            log.warning(
                "stored scores are damaged: %s %s; the file is deleted, and missing parts are computed again",
                path,
                problem,
            )
            try:
                path.unlink()
            except OSError as error:
                raise _unwritable(self.path, error) from error
        return [index for index in range(len(self.sizes)) if index not in found]

    def write(self, index: int, records: Records) -> None:
        """Write one part, which is either complete or absent afterwards; synced to disk when this returns."""
        assert len(records) == self.sizes[index] and records.dtype == self.dtype, (
            "a part with other records than planned"
        )
        buffer = io.BytesIO()
        np.save(buffer, records, allow_pickle=False)
        content = buffer.getbuffer()
        beside = ""
        try:
            descriptor, beside = tempfile.mkstemp(prefix=_UNFINISHED, dir=self.path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path / f"{index:06}-{self._checksum(index, content)}.npy")
        except OSError as error:
            with suppress(OSError):
                os.unlink(beside)
            raise _unwritable(self.path, error) from error

    def read(self) -> list[Records]:
        """Return the records of each part, mapped from its file after it was verified. Raises DamagedScoresError."""
        found, problems = self._verified()
        if len(found) < len(self.sizes):
            problem = next((f"{path.name} {what}" for path, what in problems.items()), "parts are missing")
            raise DamagedScoresError(
                f"trainer.scores_dir: the stored scores in {self.path} are incomplete ({problem}); repeat the command, which computes "
                "them again; several machines need a folder that all of them share"
            )
        with suppress(OSError):  # of a read-only folder
            os.utime(self.path / ABOUT)  # read by `data.cache prune --older-than`
        return [
            np.load(found[index], mmap_mode="r" if size else None, allow_pickle=False)
            for index, size in enumerate(self.sizes)
        ]

    def _verified(self) -> tuple[dict[int, Path], dict[Path, str]]:
        """Return the sound parts by index, and what is wrong with the others."""
        found: dict[int, Path] = {}
        problems: dict[Path, str] = {}
        for path in sorted(self.path.glob("*.npy")):
            match = _PART.fullmatch(path.name)
            index = int(match[1]) if match else -1
            if match is None or index >= len(self.sizes) or index in found:
                problems[path] = "is not a part of this entry"
            elif problem := self._problem(path, index, match[2]):
                problems[path] = problem
            else:
                found[index] = path
        return found, problems

    def _problem(self, path: Path, index: int, checksum: str) -> str:
        try:
            with path.open("rb") as file:
                if self._checksum(index, file.read()) != checksum:
                    return "does not match its checksum"
                file.seek(0)
                held = np.load(path, mmap_mode="r" if self.sizes[index] else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            return f"cannot be read: {error}"
        fits = held.shape == (self.sizes[index],) and held.dtype == self.dtype
        return "" if fits else f"has {len(held)} records of {held.dtype}, expected {self.sizes[index]} of {self.dtype}"

    def _checksum(self, index: int, content: bytes | memoryview) -> str:
        found = xxhash.xxh3_64(f"{self.key}/{index}".encode())
        found.update(content)
        return found.hexdigest()


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"trainer.scores_dir: cannot write to {folder} ({error.strerror}); expected a folder with enough space; pass "
        "trainer.scores_dir=<folder>"
    )
