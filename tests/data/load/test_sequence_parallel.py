"""Batches cut among the ranks of a sequence group: together the parts are the whole, padding aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_hydra.data.batch import Batch
from arctic_hydra.data.load.sequence_parallel import ShardedLoader, shard_loader
from tests.data.samples import factory, geometry

CAPACITY = 130


def columns(batch: Batch) -> list[torch.Tensor]:
    assert batch.document_K is not None
    return [batch.rows_K, batch.targets_K, batch.source_K, batch.document_K]


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
        width, places = joined.shape[1] // 3, {}
        for rank, part in enumerate(parts):
            assert part.document_K is not None and len(part.document_K) == len(part.rows_K) == part.num_supervised
            for row, *rest in zip(*(column.tolist() for column in columns(part)), strict=True):
                places[row // width * length + row % width + rank * width] = rest
        expected = {row: rest for row, *rest in zip(*(column.tolist() for column in columns(batch)), strict=True)}
        assert places == expected and len(expected) == batch.num_supervised


def test_a_loader_without_a_group_and_row_length_stays_as_it_is(small_chats: Path, tokenizer: Any) -> None:
    loader, _ = factory(small_chats).build(tokenizer, geometry())
    assert shard_loader(loader) is loader
    (batch,) = next(iter(shard_loader(loader, 4096).windows(0))).micro_batches
    assert batch.input_ids_BT.shape == (1, 4096) and batch.num_padding > 0


@pytest.mark.parametrize("packing", [True, False])
def test_rows_are_padded_to_a_multiple_or_a_length(small_chats: Path, tokenizer: Any, packing: bool) -> None:
    for fields, expected in (({"pad_to": "div_length"}, 256), ({"pad_to": "div_length", "div_length": 48}, 48)):
        data = factory(small_chats, packing=packing, max_length=CAPACITY, **fields)
        loader = data.build(tokenizer, geometry(2, 1))[0]
        assert data.padded_row_tokens(2) is None
        for plain, padded in zip(
            loader.windows(0), shard_loader(loader, None, data.row_multiple).windows(0), strict=True
        ):
            width = padded.micro_batches[0].input_ids_BT.shape[1]
            assert width % expected == 0 and 0 <= width - plain.micro_batches[0].input_ids_BT.shape[1] < expected
            assert padded.num_supervised == plain.num_supervised
    data = factory(small_chats, packing=packing, max_length=CAPACITY, pad_to="max_length")
    loader = shard_loader(data.build(tokenizer, geometry(2, 1))[0], data.padded_row_tokens(2), data.row_multiple)
    widths = {batch.input_ids_BT.shape[1] for window in loader.windows(0) for batch in window.micro_batches}
    assert widths == {2 * CAPACITY if packing else CAPACITY}
