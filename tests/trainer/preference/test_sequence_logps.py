"""Scores of answers from the log-probabilities of their tokens."""

from __future__ import annotations

import torch

from arctic_hydra.trainer.preference.sequence_logps import score_pairs

LOGPS = -torch.arange(1.0, 11.0)
DOCUMENTS = torch.tensor([0, 0, 0, 1, 2, 3, 3, 3, 3, 3])


def test_scores_are_sums_over_each_answer():
    found = score_pairs(LOGPS, DOCUMENTS, 2)
    assert found.chosen.score_P.tolist() == [-6.0, -5.0] and found.chosen.tokens_P.tolist() == [3, 1]
    assert found.rejected.score_P.tolist() == [-4.0, -40.0] and found.rejected.tokens_P.tolist() == [1, 5]
    assert found.rejected.mean_P.tolist() == [-4.0, -8.0]


def test_tokens_that_only_the_longer_answer_has_count_less():
    found = score_pairs(LOGPS, DOCUMENTS, 2, ld_alpha=0.5)
    assert found.chosen.score_P.tolist() == [-1 + 0.5 * -5, -5.0]
    assert found.rejected.score_P.tolist() == [-4.0, -6 + 0.5 * -34]
    whole, shared = (score_pairs(LOGPS, DOCUMENTS, 2, alpha) for alpha in (1.0, 0.0))
    assert whole.rejected.score_P.tolist() == [-4.0, -40.0] and shared.rejected.score_P.tolist() == [-4.0, -6.0]


def test_pairs_are_subtracted_and_scaled():
    found = score_pairs(LOGPS, DOCUMENTS, 2)
    assert found.less(found).chosen.score_P.tolist() == [0.0, 0.0]
    assert found.scaled(2.0).rejected.score_P.tolist() == [-8.0, -80.0]
    assert found.means().chosen.score_P.tolist() == [-2.0, -5.0]


def test_no_pairs_have_a_graph():
    logps = torch.zeros(0, requires_grad=True)
    found = score_pairs(logps, torch.zeros(0, dtype=torch.int64), 0)
    found.chosen.score_P.sum().backward()
    assert logps.grad is not None
