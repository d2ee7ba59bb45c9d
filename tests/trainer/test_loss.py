"""Loss and evaluation of a batch, through the tapped head and through all logits."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.trainer.chunked import TokenLoss
from arctic_hydra.trainer.head import tap_head
from arctic_hydra.trainer.loss import LossComputer
from tests.ranks import run_ranks
from tests.trainer.heads import llama, some_batch
from tests.trainer.loop import documents, full_weights, make_trainer


def test_evaluation_is_plain_cross_entropy_without_training_terms():
    model, batch = llama(), some_batch()
    head = tap_head(model, torch.device("cpu"))
    full, tapped = (LossComputer(model, h, TokenLoss(0.1, 1e-2)) for h in (None, head))
    torch.testing.assert_close(tapped.evaluation_sums(batch, 1), full.evaluation_sums(batch, 1))
    torch.testing.assert_close(tapped.loss_sum(batch), full.loss_sum(batch))
    assert tapped.evaluation_sums(batch, 1)[0, 0] < tapped.loss_sum(batch)


DATA = documents([20, 60, 10, 25, 12, 9, 31, 8], [1, 50, 7, 0, 7, 8, 20, 2])


TERMS = {"plain": {}, "label smoothing": {"label_smoothing": 0.1}, "z-loss": {"z_loss": 1e-2}}


def _trained(folder, stage, terms, **settings):
    """Train two steps of four documents; return losses and final weights."""
    trainer = make_trainer(DATA, folder, stage=stage, lr=1e-3, **terms, **settings)
    rows = []
    trainer._record = rows.append
    trainer.train()
    return [row["loss"] for row in rows], full_weights(trainer)


def _all_terms(folder, stage, settings):
    return {name: _trained(folder, stage, terms, **settings) for name, terms in TERMS.items()}


@pytest.fixture(scope="module")
def full_logits(tmp_path_factory):
    settings = {"micro_batch_size": 4, "head_loss": "full"}
    return run_ranks(1, _all_terms, tmp_path_factory.mktemp("full"), 0, settings)[0]


@pytest.mark.parametrize(("ranks", "stage", "packed"), [(1, 0, False), (2, 0, True), (2, 2, True), (2, 3, False)])
def test_chunks_equal_all_logits_on_ranks_and_stages(full_logits, tmp_path, ranks, stage, packed):
    settings = {"micro_batch_size": 4 // ranks, "packed": packed, "head_chunk_rows": 3}
    for ours in run_ranks(ranks, _all_terms, tmp_path, stage, settings):
        for name, (losses, weights) in ours.items():
            expected, wanted = full_logits[name]
            assert losses == pytest.approx(expected, abs=1e-6)
            far = max(float((weights[key] - wanted[key]).abs().max()) for key in wanted)
            print(
                f"{name}: losses within {max(abs(a - b) for a, b in zip(losses, expected, strict=True)):.1e}, weights {far:.1e}"
            )
            assert far < 2e-5, name
