"""Batches cut among the ranks of a sequence group: together the parts are the whole, padding aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_hydra.data.load.sequence_parallel import ShardedLoader, shard_loader
from tests.data.samples import factory, geometry

CAPACITY = 130


@pytest.mark.parametrize("packing", [True, False])
def test_the_parts_of_a_group_join_to_the_batch(small_chats: Path, tokenizer: Any, packing: bool) -> None:
    loader, _ = factory(small_chats, packing=packing, max_length=CAPACITY).build(tokenizer, geometry(2, 1))
    ranks = [ShardedLoader(loader, rank, 3, CAPACITY * 2) for rank in range(3)]
    assert ranks[0].fingerprint == loader.fingerprint and ranks[0].steps(0) == loader.steps(0)
    for whole, *cut in zip(loader.windows(0), *(rank.windows(0) for rank in ranks), strict=True):
        (batch,), parts = whole.micro_batches, [window.micro_batches[0] for window in cut]
        length = batch.input_ids_BT.shape[1]
        joined = torch.cat([part.input_ids_BT for part in parts], dim=1)
        assert joined.shape[1] % 3 == 0 and joined.shape[1] >= CAPACITY * 2
        assert torch.equal(joined[:, :length], batch.input_ids_BT) and not joined[:, length:].any()
        assert sum(part.num_supervised for part in parts) == batch.num_supervised
        assert sum(part.num_tokens for part in parts) == batch.num_tokens
        assert sorted(token for part in parts for token in part.targets_K.tolist()) == sorted(batch.targets_K.tolist())


def test_a_loader_without_a_group_and_row_length_stays_as_it_is(small_chats: Path, tokenizer: Any) -> None:
    loader, _ = factory(small_chats).build(tokenizer, geometry())
    assert shard_loader(loader) is loader
    (batch,) = next(iter(shard_loader(loader, 4096).windows(0))).micro_batches
    assert batch.input_ids_BT.shape == (1, 4096) and batch.num_padding > 0
