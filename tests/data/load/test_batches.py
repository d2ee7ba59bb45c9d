"""Batches of a step: the contract of `batch.Batch`, the same global batches for any geometry, no duplicates."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from arctic_hydra.data.batch import Batch
from tests.data.load.samples import documents
from tests.data.samples import factory, geometry


def global_batches(
    path: Path, tokenizer: PreTrainedTokenizerBase, micro: int, accumulation: int, size: int, **fields: Any
) -> list[list[int]]:
    """Return the example ids of every step over all ranks, sorted."""
    steps: list[list[int]] = []
    for rank in range(size):
        loader, _ = factory(path, **fields).build(tokenizer, geometry(micro, accumulation, rank, size))
        for step, window in enumerate(loader.windows(1)):
            if rank == 0:
                steps.append([])
            steps[step] += [example for batch in window.micro_batches for example in batch.example_ids]
    return [sorted(step) for step in steps]


@pytest.mark.parametrize("packing", [True, False])
def test_the_same_global_batches_for_any_geometry(small_chats: Path, tokenizer: Any, packing: bool) -> None:
    options = {"packing": packing, "max_length": 128, "prefetch_steps": 0}
    expected = global_batches(small_chats, tokenizer, 4, 1, 1, **options)
    for micro, accumulation, size in ((1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)):
        assert global_batches(small_chats, tokenizer, micro, accumulation, size, **options) == expected
    assert Counter(example for step in expected for example in step) == Counter(range(37))


@pytest.mark.parametrize("packing", [True, False])
def test_ragged_last_window_has_equal_micro_batches_on_every_rank(
    small_chats: Path, tokenizer: Any, packing: bool
) -> None:
    seen: Counter[int] = Counter()
    counts = []
    for rank in range(3):
        loader, _ = factory(small_chats, packing=packing, max_length=128).build(tokenizer, geometry(2, 3, rank, 3))
        windows = list(loader.windows(0))
        assert len(windows) == loader.steps(0)
        counts.append([len(window.micro_batches) for window in windows])
        for window in windows:
            for batch in window.micro_batches:
                seen.update(batch.example_ids)
                if not batch.example_ids:
                    assert batch.input_ids_BT.shape == (1, 1)
                    assert batch.num_supervised == batch.num_tokens == 0
    assert counts[0] == counts[1] == counts[2]
    assert seen == Counter(range(37))


def test_a_rank_without_packs_gets_an_empty_batch(small_chats: Path, tokenizer: Any) -> None:
    loader, _ = factory(small_chats, max_length=2048).build(tokenizer, geometry(1, 1, rank=3, size=4))
    (window,) = loader.windows(0)
    (batch,) = window.micro_batches
    assert batch.example_ids == []
    assert batch.cu_seqlens is not None and batch.cu_seqlens.tolist() == [0, 1]
    assert (batch.num_tokens, batch.num_padding, window.num_supervised) == (0, 1, 0)


def first_batches(path: Path, tokenizer: Any, packing: bool, mask_inputs: bool = True) -> list[Batch]:
    made = factory(path, packing=packing, max_length=128, mask_inputs=mask_inputs)
    loader, _ = made.build(tokenizer, geometry(4, 1))
    return [batch for window in loader.windows(0) for batch in window.micro_batches]


def test_packed_and_padded_batches_hold_the_same_documents(small_chats: Path, tokenizer: Any) -> None:
    found = []
    for packing in (True, False):
        everything: dict[int, Any] = {}
        for batch in first_batches(small_chats, tokenizer, packing):
            everything |= dict(zip(batch.example_ids, documents(batch), strict=True))
            flat = batch.input_ids_BT.reshape(-1)
            assert torch.equal(flat[batch.rows_K + 1], batch.targets_K)
            assert batch.input_ids_BT.dtype == batch.rows_K.dtype == batch.source_K.dtype == torch.int64
            assert batch.num_tokens + batch.num_padding == flat.numel()
            assert batch.source_K.tolist() == [0] * batch.num_supervised
        found.append(everything)
    assert found[0] == found[1]
    assert len(found[0]) == 37


def test_positions_restart_at_each_document(small_chats: Path, tokenizer: Any) -> None:
    batch = first_batches(small_chats, tokenizer, packing=True)[0]
    assert batch.cu_seqlens is not None and batch.cu_seqlens.dtype == torch.int32
    bounds = batch.cu_seqlens.tolist()
    assert len(bounds) > 5
    expected = [position for a, b in itertools.pairwise(bounds) for position in range(b - a)]
    assert batch.position_ids_BT.tolist() == [expected]
    assert batch.max_seqlen == max(batch.document_lengths)


@pytest.mark.parametrize("packing", [True, False])
def test_the_first_token_of_the_next_document_is_not_predicted(
    small_chats: Path, tokenizer: Any, packing: bool
) -> None:
    total = 0
    for batch in first_batches(small_chats, tokenizer, packing, mask_inputs=False):
        for ids, rows in documents(batch):
            assert rows == list(range(len(ids) - 1)), "the last token of a document predicts nothing"
            total += len(rows)
        assert batch.num_supervised == batch.num_tokens - len(batch.document_lengths)
    assert total > 0


def test_max_length_bounds_every_pack(small_chats: Path, tokenizer: Any) -> None:
    loader, _ = factory(small_chats, max_length=128).build(tokenizer, geometry(1, 1))
    assert all(batch.num_tokens <= 128 for window in loader.windows(0) for batch in window.micro_batches)
