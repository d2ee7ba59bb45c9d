"""Helpers of the streaming tests: shards of rows whose token ids are the row number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra.data.batch import Batch
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.json import JsonSource
from tests.data.samples import write_lines

CAPACITY = 16


def write_shards(folder: Path, lengths: list[list[int]]) -> int:
    """Write rows of token ids, a shard for each list; the ids of row n are n, n, n, ... Return how many there are."""
    row = 0
    for index, shard in enumerate(lengths):
        rows = [{"input_ids": [row + place] * length} for place, length in enumerate(shard)]
        write_lines(folder / f"{index}.jsonl", rows)
        row += len(shard)
    return row


def tokens_factory(folder: Path, **fields: Any) -> SFTDataFactory:
    source = JsonSource(path=str(folder), process=False)
    settings = {"max_length": CAPACITY, "streaming": True, "num_proc": 1, "prefetch_steps": 0}
    return SFTDataFactory(sources={"tokens": source}, **{**settings, **fields})


def rows_of(batch: Batch) -> list[tuple[int, int]]:
    """Return (first id, length) of each document."""
    flat = batch.input_ids_BT.reshape(-1).tolist()
    width = batch.input_ids_BT.shape[1]
    starts = batch.cu_seqlens.tolist() if batch.cu_seqlens is not None else range(0, len(flat), width)
    return [(flat[start], length) for start, length in zip(starts, batch.document_lengths, strict=False)]
