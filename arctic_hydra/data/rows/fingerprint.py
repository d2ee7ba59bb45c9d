"""Hashes of files and rows, which identify the content in cache keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from arctic_hydra.data.rows.base import Rows
from arctic_hydra.errors import DataError

WHOLE_BYTES = 2**26
"""Data sets up to this size are hashed completely; of larger ones, blocks are sampled."""
SAMPLED_BLOCKS, BLOCK_BYTES = 2**10, 2**14
"""Number of sampled blocks over all files of a set (at least two of each file), and their size."""


def hash_rows(rows: Rows) -> str:
    """Return a hash of the content and order of all rows."""
    digest = hashlib.sha256()
    for start in range(0, len(rows), 1000):
        for row in rows.take(range(start, min(start + 1000, len(rows)))):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content; raises DataError if it cannot be read."""
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def hash_files(paths: Sequence[Path]) -> list[list[str]]:
    """Return name and content hash of each file, independent of its directory and timestamps."""
    return [[path.name, hash_file(path)] for path in paths]


def fingerprint_files(paths: Sequence[Path]) -> list[list[str | int]]:
    """Return name, size and a hash of each file, sampled if the files are large.

    In a sampled file, an edit between two blocks that keeps the size is not detected. Timestamps are ignored, so that a
    run can resume from a copy on another machine, which has the same rows at the same offsets.
    """
    sizes = [_size_of(path) for path in paths]
    blocks = max(2, SAMPLED_BLOCKS // max(1, len(paths)))
    whole = sum(sizes) <= WHOLE_BYTES
    return [
        [path.name, size, hash_file(path) if whole else _hash_blocks(path, size, blocks)]
        for path, size in zip(paths, sizes, strict=True)
    ]


def _size_of(path: Path) -> int:
    with _reading(path):
        return path.stat().st_size


def _hash_blocks(path: Path, size: int, count: int) -> str:
    """Return the SHA-256 of evenly spaced blocks of a file, including its first and last."""
    digest = hashlib.sha256()
    with _reading(path), path.open("rb") as file:
        for index in range(count):
            file.seek(max(0, size - BLOCK_BYTES) * index // (count - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
