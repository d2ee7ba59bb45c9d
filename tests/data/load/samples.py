"""Helpers that read batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra.data.batch import Batch
from arctic_hydra.data.source.json import JsonSource
from tests.data.samples import chat, write_lines


def documents(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return (tokens, positions that predict) of each document, from the tensors alone."""
    ids, rows = batch.input_ids_BT.reshape(-1).tolist(), batch.rows_K.tolist()
    if batch.cu_seqlens is not None:
        starts = batch.cu_seqlens.tolist()[:-1]
    else:
        starts = [row * batch.input_ids_BT.shape[1] for row in range(batch.input_ids_BT.shape[0])]
    spans = [(start, start + length) for start, length in zip(starts, batch.document_lengths, strict=True)]
    return [(ids[a:b], [row - a for row in rows if a <= row < b]) for a, b in spans]


def two_sources(tmp_path: Path, small_chats: Path, **weights: Any) -> dict[str, JsonSource]:
    other = write_lines(tmp_path / "other.jsonl", [chat(f"q {n}", "other") for n in range(5)])
    paths = {"one": small_chats, "two": other}
    return {name: JsonSource(path=str(path), weight=weights.get(name)) for name, path in paths.items()}
