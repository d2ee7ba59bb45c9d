"""A loader with scores serves what the loader without them serves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import DataError
from arctic_hydra.trainer.scoring.scorer import Scoring, store_scores
from tests.trainer.scoring.test_scorer import RECORD, scored, tools_of


def test_nothing_but_the_scores_is_added(tmp_path):
    tools = tools_of(tmp_path)
    plain = tools.loader
    store_scores(tools, Scoring({}, RECORD), tmp_path, scored())
    assert (tools.loader.fingerprint, tools.loader.source_names) == (plain.fingerprint, plain.source_names)
    assert tools.loader.steps(1) == plain.steps(1) and len(tools.loader.paths) == 2
    for with_scores, without in zip(tools.loader.windows(1, 2), plain.windows(1, 2), strict=True):
        assert with_scores.step_in_epoch == without.step_in_epoch
        for batch, other in zip(with_scores.micro_batches, without.micro_batches, strict=True):
            assert batch.example_ids == other.example_ids and torch.equal(batch.targets_K, other.targets_K)
            assert other.stored == {}


def test_scores_follow_their_positions():
    ids = torch.arange(4)
    batch = Batch(ids[None], ids[None], ids, ids, ids, stored={"a": ids * 10, "b": torch.stack([ids, ids], 1)})
    part = batch.only(torch.tensor([False, True, False, True])).to(torch.device("cpu"))
    assert part.stored["a"].tolist() == [10, 30] and part.stored["b"].shape == (2, 2)


def test_a_batch_of_other_documents_is_refused(tmp_path):
    tools = tools_of(tmp_path)
    store_scores(tools, Scoring({}, RECORD), tmp_path, scored())
    window = next(iter(tools.loader.windows(0)))
    batch = window.micro_batches[0]
    with pytest.raises(DataError, match=r"data: a batch has \d+ supervised positions, but \d+ scores are stored"):
        tools.loader._with_scores(batch.only(torch.from_numpy(np.arange(batch.num_supervised) > 0)))
