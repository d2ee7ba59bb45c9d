"""The batch contract: counts of a step, moving a batch, and the former name of `StepBatch`."""

from __future__ import annotations

import torch

from arctic_hydra.data.batch import Batch, StepBatch


def batch_of(sources: list[int]) -> Batch:
    """Return a micro-batch with a supervised position for each given source."""
    count = len(sources)
    ids = torch.arange(count + 1)[None]
    return Batch(
        ids, ids.clone(), torch.arange(count), torch.arange(count) + 1, torch.tensor(sources, dtype=torch.int64)
    )


def test_a_step_counts_its_supervised_positions_by_source() -> None:
    step = StepBatch([batch_of([0, 2, 2]), batch_of([]), batch_of([2])], step_in_epoch=4)
    assert step.num_supervised == 4
    assert step.supervised_by_source(4) == [1, 0, 3, 0]


def test_moving_a_batch_keeps_what_is_not_a_tensor() -> None:
    made = batch_of([0, 1])
    made.example_ids, made.document_lengths, made.num_tokens = [7], [3], 3
    moved = made.to(torch.device("meta"))
    assert moved.input_ids_BT.device.type == moved.targets_K.device.type == "meta"
    assert (moved.cu_seqlens, moved.example_ids, moved.document_lengths, moved.num_tokens) == (None, [7], [3], 3)
    assert made.input_ids_BT.device.type == "cpu"
