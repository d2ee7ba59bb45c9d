"""Packs filled to their last token: cut, repeated, or without the last one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_hydra.data.arrays import Ints
from arctic_hydra.data.documents import SingleDocuments
from arctic_hydra.data.load.full_packs import cut_to_packs, repeated, without_last
from arctic_hydra.data.load.packing import plan_packs
from arctic_hydra.errors import DataError
from tests.data.load.samples import documents
from tests.data.samples import factory, geometry

CAPACITY = 128


class Store(SingleDocuments):
    """Documents whose tokens are numbered through."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)
        self.sources = np.arange(len(lengths)) % 2
        self._starts = np.cumsum([0, *lengths])

    def ids(self, index: int) -> Ints:
        return np.arange(self._starts[index], self._starts[index + 1])

    def mask(self, index: int) -> Ints:
        return self.ids(index) % 3 % 2


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), capacity=st.integers(1, 40), seed=st.integers(0, 3)
)
@settings(max_examples=80)
def test_cut_packs_are_full_and_lose_no_token(lengths: list[int], capacity: int, seed: int) -> None:
    store, chosen = Store(lengths), np.random.default_rng(seed).permutation(len(lengths))
    pieces, plan = cut_to_packs(store, chosen, capacity)
    packs = [[int(token) for piece in plan.pack(p) for token in pieces.ids(int(piece))] for p in range(len(plan))]
    assert [len(pack) for pack in packs[:-1]] == [capacity] * (len(plan) - 1) and len(packs[-1]) <= capacity
    assert [token for pack in packs for token in pack] == [
        int(token) for one in chosen for token in store.ids(int(one))
    ]
    for index in range(len(pieces.lengths)):
        assert len(pieces.ids(index)) == len(pieces.mask(index)) == pieces.lengths[index] > 0
        assert pieces.mask(index).tolist() == (pieces.ids(index) % 3 % 2).tolist()
        assert pieces.sources[index] == store.sources[pieces.examples[index]]


def test_only_the_emptiest_pack_is_left_out_and_only_if_it_is_not_full() -> None:
    lengths = np.array([6, 4, 7, 3, 5])
    plan = plan_packs(lengths, 10)
    kept = without_last(plan, lengths)
    assert (len(plan), len(kept), kept.tokens) == (3, 2, 20)
    assert sorted(kept.examples.tolist()) == [0, 1, 2, 3] and kept.bounds.tolist() == [0, 2, 4]
    assert without_last(kept, lengths) is kept


def test_small_data_is_repeated_while_it_fits() -> None:
    assert repeated(np.array([3, 4]), 10).tolist() == [0, 1, 0]
    assert repeated(np.array([3, 4]), 14).tolist() == [0, 1, 0, 1]
    assert repeated(np.array([3, 4]), 6).tolist() == [0, 1], "each at least once"


def batches(path: Path, tokenizer: Any, epoch: int = 0, **fields: Any) -> list[Any]:
    loader, _ = factory(path, max_length=CAPACITY, **fields).build(tokenizer, geometry(1, 2))
    found = [batch for window in loader.windows(epoch) for batch in window.micro_batches]
    assert loader.steps(epoch) == -(-len(found) // 2)
    return found


def test_always_max_length_fills_packs_exactly(small_chats: Path, tokenizer: Any) -> None:
    usual = batches(small_chats, tokenizer)
    for epoch in (0, 1):
        cut = batches(small_chats, tokenizer, epoch, always_max_length=True)
        assert sorted(batch.num_tokens for batch in cut)[1:] == [CAPACITY] * (len(cut) - 1)
        assert sum(batch.num_tokens for batch in cut) == sum(batch.num_tokens for batch in usual)
        assert set(Counter(example for batch in cut for example in batch.example_ids)) == set(range(37))
        full = batches(small_chats, tokenizer, epoch, always_max_length=True, drop_last=True)
        assert [batch.num_tokens for batch in full] == [CAPACITY] * (len(cut) - 1)


def test_a_fingerprint_changes_with_these_options_alone(small_chats: Path, tokenizer: Any) -> None:
    options: list[dict[str, Any]] = [
        {}, {"always_max_length": True}, {"drop_last": True}, {"repeat_to_pack_max_length": True}, {"fuse_positions_prob": 0.5},
    ]  # fmt: skip
    found = {
        factory(small_chats, max_length=CAPACITY, **fields).build(tokenizer, geometry())[0].fingerprint
        for fields in options
    }
    assert len(found) == len(options)


def test_small_data_fills_its_pack(small_chats: Path, tokenizer: Any) -> None:
    made = factory(small_chats, max_length=4096, repeat_to_pack_max_length=True)
    (window,) = made.build(tokenizer, geometry())[0].windows(0)
    (batch,) = window.micro_batches
    assert 4096 - 80 < batch.num_tokens <= 4096
    times = set(Counter(batch.example_ids).values())
    assert max(times) - min(times) <= 1 and len(set(batch.example_ids)) == 37


def test_a_pack_that_is_dropped_must_not_be_the_only_one(small_chats: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"data\.drop_last: got true, but all examples together do not fill one pack"):
        factory(small_chats, max_length=8192, drop_last=True).build(tokenizer, geometry())


def test_fused_packs_are_one_document_and_train_the_same_tokens(small_chats: Path, tokenizer: Any) -> None:
    usual, fused = batches(small_chats, tokenizer), batches(small_chats, tokenizer, fuse_positions_prob=1)
    for one, other in zip(usual, fused, strict=True):
        assert other.input_ids_BT.equal(one.input_ids_BT) and other.rows_K.equal(one.rows_K)
        assert other.cu_seqlens.tolist() == [0, one.num_tokens] and other.max_seqlen == one.num_tokens
        assert other.position_ids_BT.tolist() == [list(range(one.num_tokens))] and other.document_lengths == [
            one.num_tokens
        ]
        assert other.example_ids == one.example_ids and len(documents(other)) == 1
        assert set(other.document_K.tolist()) == {0}
    mixed = [len(batch.document_lengths) == 1 for batch in batches(small_chats, tokenizer, fuse_positions_prob=0.5)]
    assert 0 < sum(mixed) < len(mixed)
