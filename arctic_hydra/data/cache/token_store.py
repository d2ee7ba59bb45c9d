"""Tokenized examples on disk: Arrow files, memory-mapped and read without copying.

The whole entry is verified each time it is opened, because a flipped bit, or a page lost in a power failure, would change
the tokens that are trained on. XXH3 processes about 20 GB/s from the page cache, and otherwise runs at the speed of the
disk; the SHA-256 of the source files, which is part of the key, takes several times as long. Verifying parts at their
first use would detect damage only during training, when the entry can no longer be rebuilt.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from arctic_hydra.data.arrays import Array, to_arrow, to_numpy
from arctic_hydra.data.documents import Chunk, Side, SingleDocuments
from arctic_hydra.errors import StateFileError
from arctic_hydra.files.ownership import folder_problem
from arctic_hydra.files.state_file import Schema, Table, at_least_0, open_regular, read_state

RELEASE_EXAMPLES = 500
"""Examples between two releases of mapped pages; reading one maps up to about 128 KiB, including read-ahead."""

EXAMPLES = "examples.arrow"
MANIFEST = "manifest.json"
LAYOUT_VERSION = 3
READ_BYTES = 1 << 20
MANIFEST_FILE = Schema(
    "the entry is built again",
    Table({"layout": int, "examples": at_least_0, "files": Table({EXAMPLES: str}), "report": dict, "checksum": str}),
    formats=(0, 0),
)
"""`manifest.json`: its `layout` is the format of the entry."""

_SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.uint8())),
        ("length", pa.int32()),
        ("supervised", pa.int32()),
        ("row", pa.int64()),
    ]
)


_FURTHER = {"label": pa.uint8(), "margin": pa.float32()}
"""Columns of some entries: those of labelled data, and of pairs whose margins are read."""


class DamagedEntryError(Exception):
    """A cache entry whose content differs from its manifest."""


class TokenStore:
    """The tokenized examples of one source by index; `ids` and `mask` return views of the mapped file."""

    def __init__(self, directory: Path, key: str, *, of_others: bool = False) -> None:
        """`of_others` accepts an entry of another user, which the caller has checked."""
        self.key = key
        manifest = read_manifest(directory, of_others=of_others)
        self.report: dict[str, Any] = manifest["report"]
        try:
            # The mapping remains valid after the file is unlinked, so a private store needs no cleanup.
            with os.fdopen(open_regular(directory / EXAMPLES), "rb", buffering=0) as file:
                if _checksum(file) != manifest["files"][EXAMPLES]:
                    raise DamagedEntryError(f"{EXAMPLES} does not match its checksum")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.py_buffer(self._map))
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            self._take(batches)
            self.labels, self.margins = (
                _column(batches, name) if name in reader.schema.names else None for name in _FURTHER
            )
            problem = self._problem(batches, manifest["examples"])
        # An empty file raises ValueError, as do most errors in Arrow.
        except (ValueError, OSError, LookupError, pa.ArrowException) as error:
            raise DamagedEntryError(str(error)) from error
        if problem:
            raise DamagedEntryError(problem)
        self._served = 0

    def _take(self, batches: list[pa.RecordBatch]) -> None:
        """Keep ids and masks as views of the file, and copies of the columns with one number per example."""
        self.lengths = _column(batches, "length")
        self.supervised = _column(batches, "supervised")
        self.rows = _column(batches, "row")
        self._ids = [to_numpy(batch.column("ids").values) for batch in batches]
        self._masks = [to_numpy(batch.column("mask").values) for batch in batches]
        self._batch_of = np.repeat(np.arange(len(batches)), [batch.num_rows for batch in batches])
        self._start_of = np.concatenate([np.empty(0, np.int32), *(part[:-1] for part in _offsets(batches, "ids"))])

    def _problem(self, batches: list[pa.RecordBatch], examples: int) -> str | None:
        """Return which numbers are inconsistent, so that examples would have wrong tokens; None if there are none."""
        if len(self.lengths) != examples:
            return f"has {len(self.lengths)} examples, but the manifest says {examples}"
        offsets, mask_offsets = _offsets(batches, "ids"), _offsets(batches, "mask")
        spans = np.concatenate([np.empty(0, np.int32), *map(np.diff, offsets)])
        bad = {
            "offsets": any(
                part[0] < 0 or part[-1] > min(len(ids), len(mask)) or not np.array_equal(part, mask_part)
                for part, mask_part, ids, mask in zip(offsets, mask_offsets, self._ids, self._masks, strict=True)
            ),
            "lengths": np.any((self.lengths < 1) | (self.lengths != spans)),
            "counts of supervised tokens": np.any((self.supervised < 0) | (self.supervised > self.lengths)),
            "labels": self.labels is not None and np.any(self.labels > 1),
            "margins": self.margins is not None and np.any(np.isinf(self.margins)),
            "row numbers": np.any((self.rows < 0) | (np.diff(self.rows, prepend=0) < 0)),
        }
        return next((f"has inconsistent {name}" for name, found in bad.items() if found), None)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def predicted(self) -> Array:
        """Number of supervised positions of each example in a batch: its supervised tokens, without the very first token."""
        first = np.zeros(len(self), dtype=np.int64)
        for index, mask in enumerate(self._masks):
            mine = self._batch_of == index
            first[mine] = mask[self._start_of[mine]]
        return self.supervised.astype(np.int64) - first

    def ids(self, index: int) -> Array:
        """Return the int32 token ids of one example."""
        self._served += 1
        if self._served % RELEASE_EXAMPLES == 0:
            # Pages that were read count as memory of this process until they are released; the page cache still has them.
            self._map.madvise(mmap.MADV_DONTNEED)
        start = self._start_of[index]
        part: Array = self._ids[self._batch_of[index]][start : start + self.lengths[index]]
        return part

    def mask(self, index: int) -> Array:
        """Return the uint8 mask of one example."""
        start = self._start_of[index]
        part: Array = self._masks[self._batch_of[index]][start : start + self.lengths[index]]
        return part


class JoinedStore(SingleDocuments):
    """The tokenized examples of several sources, concatenated."""

    def __init__(self, stores: dict[str, TokenStore]) -> None:
        parts = list(stores.values())
        self.key = hashlib.sha256(json.dumps([part.key for part in parts]).encode()).hexdigest()[:32]
        self.report: dict[str, Any] = {name: store.report for name, store in stores.items()}
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.supervised = np.concatenate([part.supervised for part in parts])
        self.rows = np.concatenate([part.rows for part in parts])
        self.sources = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        labels = [part.labels for part in parts if part.labels is not None]
        self.labels = np.concatenate(labels) if labels else None
        """uint8, 1 for each example with a desirable answer; None for data without labels."""
        margins = [part.margins for part in parts if part.margins is not None]
        self.margins = np.concatenate(margins) if margins else None
        """float32, the margin of the pair of each example, NaN for a pair without one; None where margins are not read."""
        self.parts = parts
        """The examples of each source."""
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        """Index of the first example of each source, and the number of all."""

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, index: int) -> Array:
        """Return the int32 token ids of one example."""
        part = int(self.sources[index])
        return self.parts[part].ids(index - int(self.starts[part]))

    def mask(self, index: int) -> Array:
        """Return the uint8 mask of one example."""
        part = int(self.sources[index])
        return self.parts[part].mask(index - int(self.starts[part]))


class PairStore:
    """Preferences: example i is documents 2i (chosen) and 2i + 1 (rejected) of `flat`; its length is their sum."""

    def __init__(self, flat: JoinedStore) -> None:
        self.flat, self.key, self.report = flat, flat.key, flat.report
        self.lengths = self.tokens = flat.lengths[0::2] + flat.lengths[1::2]
        self.longest = np.maximum(flat.lengths[0::2], flat.lengths[1::2])
        self.supervised = flat.supervised[0::2] + flat.supervised[1::2]
        self.rows, self.sources = flat.rows[0::2], flat.sources[0::2]

    def __len__(self) -> int:
        return len(self.lengths)

    def documents(self, index: int) -> list[int]:
        """Return the documents of one example: chosen, then rejected."""
        return [2 * index, 2 * index + 1]

    def sides(self, index: int) -> list[Side]:
        """Return the documents of one example with what to call them."""
        return [("chosen", self.flat, 2 * index), ("rejected", self.flat, 2 * index + 1)]


def write_store(
    directory: Path, chunks: Iterable[Chunk], report: Callable[[], dict[str, Any]], more: Sequence[str] = ()
) -> None:
    """Write the chunks, then the manifest with `report()`; everything is synced to disk when this returns.

    `more` names what the chunks have besides tokens: `label`, `margin`.
    """
    schema = pa.schema([*_SCHEMA, *((name, _FURTHER[name]) for name in more)])
    examples = 0
    with (directory / EXAMPLES).open("xb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for chunk in chunks:
                if len(chunk.lengths):
                    writer.write_batch(_record_batch(chunk, schema))
                    examples += len(chunk.lengths)
        file.flush()
        os.fsync(file.fileno())
    _write_manifest(directory, examples, report())


def _write_manifest(directory: Path, examples: int, report: dict[str, Any]) -> None:
    with (directory / EXAMPLES).open("rb", buffering=0) as file:
        checksums = {EXAMPLES: _checksum(file)}
    manifest = {"layout": LAYOUT_VERSION, "examples": examples, "files": checksums, "report": report}
    with (directory / MANIFEST).open("x", encoding="utf-8") as text:
        json.dump({**manifest, "checksum": _checksum_of_values(manifest)}, text, indent=1)
        text.flush()
        os.fsync(text.fileno())


def _checksum(file: io.FileIO) -> str:
    """Return the XXH3 checksum of an open file."""
    found, buffer = xxhash.xxh3_64(), memoryview(bytearray(READ_BYTES))
    while count := file.readinto(buffer):
        found.update(buffer[:count])
    return found.hexdigest()


def _checksum_of_values(manifest: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(manifest, sort_keys=True).encode())


def _record_batch(chunk: Chunk, schema: pa.Schema) -> pa.RecordBatch:
    offsets = to_arrow(np.concatenate([[0], np.cumsum(chunk.lengths)]).astype(np.int32))
    columns = [
        pa.ListArray.from_arrays(offsets, to_arrow(chunk.ids)),
        pa.ListArray.from_arrays(offsets, to_arrow(chunk.mask)),
        to_arrow(chunk.lengths.astype(np.int32)),
        to_arrow(chunk.supervised),
        to_arrow(chunk.rows.astype(np.int64)),
    ]
    columns += [to_arrow(values) for values in (chunk.labels, chunk.margins) if values is not None]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(batches: list[pa.RecordBatch], name: str) -> Array:
    parts = [to_numpy(batch.column(name)) for batch in batches]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _offsets(batches: list[pa.RecordBatch], name: str) -> list[Array]:
    return [to_numpy(batch.column(name).offsets) for batch in batches]


def read_manifest(directory: Path, *, of_others: bool = False) -> dict[str, Any]:
    """Return the manifest of an entry, without verifying its file. Raises DamagedEntryError."""
    try:
        if not of_others and (problem := folder_problem(directory)):
            raise DamagedEntryError(f"it {problem}")
        manifest = read_state(directory / MANIFEST, MANIFEST_FILE, of_others=of_others)
    except (OSError, StateFileError) as error:
        raise DamagedEntryError(str(error)) from error
    if manifest is None:
        raise DamagedEntryError(f"{MANIFEST} is missing")
    if manifest["layout"] != LAYOUT_VERSION:
        raise DamagedEntryError(f"has layout {manifest['layout']}, expected {LAYOUT_VERSION}")
    if manifest.pop("checksum") != _checksum_of_values(manifest):
        raise DamagedEntryError("the manifest does not match its checksum")
    return manifest
