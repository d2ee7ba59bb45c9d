"""Batches with rows of constant length, divided among the ranks of a sequence group.

Targets are selected from whole sequences before these are divided, so the token after a boundary is predicted like any other.

Shapes: B rows, T tokens per row, t of them on this rank, K supervised positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import pad

from arctic_hydra.data.base import Example, Loader
from arctic_hydra.data.batch import Batch, StepBatch
from arctic_hydra.distributed import sequence_group


def shard_loader(loader: Loader, row_tokens: int | None = None, multiple: int = 1) -> Loader:
    """Return `loader` with rows padded to at least `row_tokens`, and divided among the ranks of a sequence group.

    The length of a row is also padded to a multiple of `multiple` tokens.
    """
    group = sequence_group()
    if group is None:
        unpadded = row_tokens is None and multiple == 1
        return loader if unpadded else ShardedLoader(loader, 0, 1, row_tokens, multiple)
    return ShardedLoader(loader, group.rank, group.size, row_tokens, multiple)


class ShardedLoader:
    """The batches of another loader, reduced to one rank's part of each sequence; implements `data.base.Loader`."""

    def __init__(self, loader: Loader, rank: int, size: int, row_tokens: int | None = None, multiple: int = 1) -> None:
        """Take the part of member `rank` of a group of `size` ranks; `loader` serves the same batches to the whole group."""
        self._loader, self._arguments = loader, (rank, size, row_tokens, multiple)
        self.fingerprint, self.source_names = loader.fingerprint, loader.source_names

    @property
    def whole(self) -> Loader:
        """The loader whose batches these are parts of."""
        return self._loader

    def steps(self, epoch: int) -> int:
        """Optimizer steps in `epoch`."""
        return self._loader.steps(epoch)

    def windows(self, epoch: int, start: int = 0) -> Iterator[StepBatch]:
        """Yield this rank's batches of each step of `epoch` from step `start` on."""
        for window in self._loader.windows(epoch, start):
            yield StepBatch(
                [shard_batch(batch, *self._arguments) for batch in window.micro_batches], window.step_in_epoch
            )

    def preview(self, count: int) -> list[Example]:
        """Return up to `count` whole examples of each source."""
        return self._loader.preview(count)

    def summary(self) -> dict[str, Any]:
        """Return the statistics of the whole data."""
        return self._loader.summary()


def shard_batch(batch: Batch, rank: int, size: int, row_tokens: int | None = None, multiple: int = 1) -> Batch:
    """Return rank's part of the tokens of `batch`, padded to `row_tokens` and to multiples of `multiple` and `size`.

    The padding of a packed row is a separate document. `cu_seqlens`, `max_seqlen` and `document_lengths` remain those of
    the whole sequence, because attention covers all of it.
    """
    rows, length = batch.input_ids_BT.shape
    whole = -(-max(length, row_tokens or 0) // multiple) * multiple
    width = -(-whole // size)
    missing, start = width * size - length, rank * width
    bounds, longest = batch.cu_seqlens, batch.max_seqlen
    if missing and bounds is not None:
        bounds, longest = torch.cat([bounds, bounds.new_tensor([length + missing])]), max(longest, missing)
    column_K = batch.rows_K % length - start
    part = batch.only((column_K >= 0) & (column_K < width))
    if bounds is not None or not batch.num_tokens:
        lengths = [batch.num_tokens]
    else:
        lengths = batch.document_lengths
    pairs = batch.mismatched
    real = sum(min(max(tokens - start, 0), width) for tokens in lengths)
    return replace(
        part,
        input_ids_BT=pad(batch.input_ids_BT, (0, missing))[:, start : start + width].contiguous(),
        position_ids_BT=pad(batch.position_ids_BT, (0, missing))[:, start : start + width].contiguous(),
        rows_K=part.rows_K // length * width + part.rows_K % length - start,
        cu_seqlens=bounds,
        max_seqlen=longest,
        num_tokens=real,
        num_padding=rows * width - real,
        mismatched=None if pairs is None else shard_batch(pairs, rank, size, row_tokens, multiple),
    )
