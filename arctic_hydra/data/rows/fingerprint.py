"""Hashes of files and rows: the content part of cache keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from arctic_hydra.data.rows.base import Rows

WHOLE_BYTES = 2**26
"""Files of a set that together are no larger are hashed whole where others are sampled."""
SAMPLED_BLOCKS, BLOCK_BYTES = 2**10, 2**14
"""What is hashed of a larger set: so many blocks over all of its files, but at least two of each."""


def hash_rows(rows: Rows) -> str:
    """Return a hash over the content and order of all rows."""
    digest = hashlib.sha256()
    for start in range(0, len(rows), 1000):
        for row in rows.take(range(start, min(start + 1000, len(rows)))):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Sequence[Path]) -> list[list[str]]:
    """Return name and content hash of each file; a file's place and times do not matter."""
    return [[path.name, hash_file(path)] for path in paths]


def fingerprint_files(paths: Sequence[Path]) -> list[list[str | int]]:
    """Return name, size and a hash of blocks of each file: what can be told of files that may be too large to be hashed.

    Small sets are read whole. Of others an edit that keeps the size and lies between two blocks is not seen. Times do not
    count here either: a copy on another machine holds the same rows at the same offsets, and is resumed from.
    """
    sizes = [path.stat().st_size for path in paths]
    blocks = max(2, SAMPLED_BLOCKS // max(1, len(paths)))
    whole = sum(sizes) <= WHOLE_BYTES
    return [
        [path.name, size, hash_file(path) if whole else _hash_blocks(path, size, blocks)]
        for path, size in zip(paths, sizes, strict=True)
    ]


def _hash_blocks(path: Path, size: int, count: int) -> str:
    """Return the SHA-256 of blocks that are spread evenly over a file, its first and its last among them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(count):
            file.seek(max(0, size - BLOCK_BYTES) * index // (count - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
