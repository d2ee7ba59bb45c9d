"""The sample and the outputs that an export has to reproduce."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.component import SEQUENCE_CLASSIFIER
from arctic_hydra.trainer.verification.expectation import LONGEST_SAMPLE, PREFIXES, has_tied_head
from tests.trainer.verification.exports import expectation, make_model


def test_the_sample_holds_stop_and_added_tokens_but_no_padding() -> None:
    model = make_model()
    expected = expectation(model.train())
    [row] = expected.rows
    assert row[0] == 3 and 0 not in row and len(row) <= LONGEST_SAMPLE
    assert expected.outputs_RV.shape == (len(row), 4096) and expected.outputs_RV.dtype == torch.float32
    assert model.training and expected.without_adapter_RV is None and expected.stop_tokens == [3]


def test_a_classifier_scores_prefixes_of_the_sample() -> None:
    expected = expectation(make_model(classifier=True), SEQUENCE_CLASSIFIER)
    lengths = [len(row) for row in expected.rows]
    assert len(lengths) >= PREFIXES and lengths == sorted(set(lengths))
    assert expected.outputs_RV.shape == (len(lengths), 1) and not expected.generates


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_one_matrix_and_not_two_equal_ones(tied: bool) -> None:
    model = make_model(tied=tied)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    assert has_tied_head(model) is tied
    assert has_tied_head(make_model(classifier=True)) is None
