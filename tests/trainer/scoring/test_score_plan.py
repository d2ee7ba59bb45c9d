"""The batches in which documents are scored."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from arctic_hydra.data.load.sequence_parallel import ShardedLoader
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError
from arctic_hydra.trainer.scoring import score_plan
from arctic_hydra.trainer.scoring.score_plan import batch_bounds, plans_of
from tests.trainer.loop import MemoryLoader, pairs
from tests.trainer.scoring.samples import loader_of

DATA = pairs([(3, 9), (12, 1), (5, 5), (20, 2), (4, 8)])
ONE = SimpleNamespace(micro_batch_size=1, gradient_accumulation_steps=1, world=World())


@pytest.mark.parametrize(
    ("packing", "expected"),
    [(True, [0, 2, 3, 5, 6]), (False, [0, 1, 2, 3, 5, 6])],
)
def test_consecutive_documents_share_a_batch_up_to_its_tokens_with_padding(packing, expected):
    assert batch_bounds(np.array([4, 6, 10, 2, 5, 5]), 10, packing=packing).tolist() == expected
    assert batch_bounds(np.array([], dtype=np.int64), 10, packing=packing).tolist() == [0]


@pytest.mark.parametrize("packing", [True, False])
def test_every_document_is_in_one_batch_and_every_part_has_its_records(tmp_path, monkeypatch, packing):
    monkeypatch.setattr(score_plan, "BATCHES_PER_PART", 2)
    [plan] = plans_of(ShardedLoader(loader_of(tmp_path, {"a": DATA}, ONE, packing=packing), 0, 1, 80))
    seen, records = [], []
    for part in range(len(plan.sizes)):
        batches = [plan.batch(index) for index in plan.batches_of(part)]
        seen += [document for batch in batches for document in batch.example_ids]
        records.append(sum(batch.num_supervised for batch in batches))
        assert all(batch.input_ids_BT.numel() <= 64 for batch in batches)
    assert seen == list(range(10)) and records == plan.sizes and len(records) > 1
    assert (
        sum(records) == plan.record_starts[-1] == sum(sum(lengths) for lengths in [(12,), (13,), (10,), (22,), (12,)])
    )
    beyond = plan.batch(len(plan.bounds))
    assert (beyond.num_supervised, beyond.example_ids) == (0, [])


def test_parts_of_large_records_hold_fewer_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(score_plan, "_BYTES_PER_PART", 2 * 64 * 400)
    loader = loader_of(tmp_path, {"a": DATA}, ONE)
    batches = [[len(plan.batches_of(part)) for part in range(len(plan.sizes))]
               for size in (4, 400, 10**6) for plan in plans_of(loader, size)]  # fmt: skip
    assert batches == [[3], [2, 1], [1, 1, 1]]


def test_a_first_token_that_is_supervised_has_no_record(tmp_path):
    data = [((list(range(4)), [True] * 4), (list(range(3)), [False, True, True]))]
    [plan] = plans_of(loader_of(tmp_path, {"a": data}, ONE))
    assert plan.record_starts.tolist() == [0, 3, 5] and plan.batch(0).num_supervised == 5


def test_loaders_whose_documents_are_scored_elsewhere_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"data.fuse_positions_prob: got 0.5, with which examples are trained on in another"
    ):
        plans_of(loader_of(tmp_path, {"a": DATA}, ONE, fuse_positions_prob=0.5))
    with pytest.raises(ConfigError, match=r"data: its loader \(MemoryLoader\) keeps no tokenized documents"):
        plans_of(MemoryLoader(DATA, 1, 1, World()))  # type: ignore[arg-type]
