"""Windows and batches: the contract of `batch.Batch`, the same global batches for any geometry, no duplicates."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from arctic_hydra.batch import Batch, StepBatch
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
def test_pitfall_14_b10_the_same_global_batches_for_any_geometry(
    small_chats: Path, tokenizer: Any, packing: bool
) -> None:
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


def documents(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return (tokens, positions that predict) of each document, from the tensors alone."""
    ids, rows = batch.input_ids_BT.reshape(-1).tolist(), batch.rows_K.tolist()
    if batch.cu_seqlens is not None:
        starts = batch.cu_seqlens.tolist()[:-1]
    else:
        starts = [row * batch.input_ids_BT.shape[1] for row in range(batch.input_ids_BT.shape[0])]
    spans = [(start, start + length) for start, length in zip(starts, batch.document_lengths, strict=True)]
    return [(ids[a:b], [row - a for row in rows if a <= row < b]) for a, b in spans]


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


def test_pitfall_11_positions_restart_at_each_document(small_chats: Path, tokenizer: Any) -> None:
    batch = first_batches(small_chats, tokenizer, packing=True)[0]
    assert batch.cu_seqlens is not None and batch.cu_seqlens.dtype == torch.int32
    bounds = batch.cu_seqlens.tolist()
    assert len(bounds) > 5
    expected = [position for a, b in itertools.pairwise(bounds) for position in range(b - a)]
    assert batch.position_ids_BT.tolist() == [expected]
    assert batch.max_seqlen == max(batch.document_lengths)


@pytest.mark.parametrize("packing", [True, False])
def test_pitfall_05_first_token_of_next_document(small_chats: Path, tokenizer: Any, packing: bool) -> None:
    total = 0
    for batch in first_batches(small_chats, tokenizer, packing, mask_inputs=False):
        for ids, rows in documents(batch):
            assert rows == list(range(len(ids) - 1)), "the last token of a document predicts nothing"
            total += len(rows)
        assert batch.num_supervised == batch.num_tokens - len(batch.document_lengths)
    assert total > 0


def test_b10_w10_max_length_bounds_every_pack(small_chats: Path, tokenizer: Any) -> None:
    loader, _ = factory(small_chats, max_length=128).build(tokenizer, geometry(1, 1))
    assert all(batch.num_tokens <= 128 for window in loader.windows(0) for batch in window.micro_batches)


def test_w16_windows_start_anywhere_without_prefetching_too_and_threads_end(small_chats: Path, tokenizer: Any) -> None:
    loader, _ = factory(small_chats, max_length=128).build(tokenizer, geometry(2, 1))
    plain, _ = factory(small_chats, max_length=128, prefetch_steps=0).build(tokenizer, geometry(2, 1))
    ids = lambda windows: [[b.example_ids for b in w.micro_batches] for w in windows]  # noqa: E731
    whole = ids(loader.windows(3))
    assert whole == ids(plain.windows(3))
    assert ids(loader.windows(3, start=4)) == whole[4:]
    assert [window.step_in_epoch for window in loader.windows(3, start=4)] == list(range(4, loader.steps(3)))
    stopped = loader.windows(0)
    assert isinstance(next(stopped), StepBatch)
    stopped.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("arctic_hydra-loader")]


def test_pitfall_15_b6_w7_packs_are_drawn_anew_each_epoch_and_for_each_seed(small_chats: Path, tokenizer: Any) -> None:
    made = factory(small_chats, max_length=128, prefetch_steps=0).build(tokenizer, geometry(1, 1))[0]
    again = factory(small_chats, max_length=128, prefetch_steps=0).build(tokenizer, geometry(1, 1))[0]
    other = factory(small_chats, max_length=128, prefetch_steps=0).build(tokenizer, geometry(1, 1, seed=8))[0]

    def order(loader: Any, epoch: int) -> list[list[int]]:
        return [batch.example_ids for window in loader.windows(epoch) for batch in window.micro_batches]

    def packs(loader: Any, epoch: int) -> set[frozenset[int]]:
        return {frozenset(batch.example_ids) for window in loader.windows(epoch) for batch in window.micro_batches}

    first, second = packs(made, 0), packs(made, 1)
    assert len(first) == len(second) == made.steps(0) == made.steps(1) == made.steps(7)
    assert sorted(example for pack in second for example in pack) == list(range(37))
    assert first != second, "examples of one length change places"
    assert packs(again, 1) == second, "the same without the epoch before"
    assert order(made, 0) != order(made, 1) and order(made, 0) != order(other, 0)


def test_an_example_can_be_looked_at(small_chats: Path, tokenizer: Any) -> None:
    loader, _ = factory(small_chats).build(tokenizer, geometry())
    example = loader.preview(37)[5]
    assert (example.source, example.row) == ("mine", 5)
    assert [shown.row for shown in loader.preview(3)] == [0, 18, 36] and len(loader.preview(99)) == 37
    answer = [token for token, mask in zip(example.ids, example.mask, strict=True) if mask]
    assert tokenizer.decode(answer) == "Answer 5. <|im_end|>"


def test_fingerprint_tells_what_decides_the_order(small_chats: Path, tokenizer: Any) -> None:
    def mark(micro: int = 2, accumulation: int = 2, rank: int = 0, size: int = 1, seed: int = 7, **fields: Any) -> str:
        return (
            factory(small_chats, **fields)
            .build(tokenizer, geometry(micro, accumulation, rank, size, seed))[0]
            .fingerprint
        )

    assert mark() == mark(1, 4) == mark(1, 2, 1, 2) == mark(num_proc=1, cache=False)
    marks = [mark(), mark(4, 2), mark(seed=8), mark(max_length=128), mark(packing=False), mark(mask_inputs=False)]
    assert len(set(marks)) == len(marks)
