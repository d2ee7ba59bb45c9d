"""Scores are those of transformers for single documents, read at the last token that is not padding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from arctic_hydra.component import SEQUENCE_CLASSIFIER
from arctic_hydra.data.load.sequence_parallel import shard_batch
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.score_head import classifier_config
from arctic_hydra.trainer.preference.reward_head import SequenceScores, last_tokens
from tests.trainer.loop import batch_of, documents, tiny_factory

LENGTHS = [9, 3, 14, 1]
PAD = 5
DOCUMENTS = documents(LENGTHS, [1, 1, 1, 0], seed=3)
for ids, _ in DOCUMENTS[:2]:  # a stop token that also pads, in the middle and at the end
    ids[1] = ids[-1] = PAD


def classifier(**values):
    factory = tiny_factory(**values)
    factory.attach(SimpleNamespace(auto_class=SEQUENCE_CLASSIFIER, notify=lambda *_: None))
    return factory.create_model(classifier_config(factory.create_config()))


@pytest.mark.parametrize("packed", [True, False])
def test_the_last_token_is_the_last_one_that_is_not_padding(packed):
    batch = batch_of(DOCUMENTS, packed)
    starts = [0, 9, 12, 26] if packed else [0, 14, 28, 42]
    assert last_tokens(batch, None).tolist() == [start + n - 1 for start, n in zip(starts, LENGTHS, strict=True)]
    assert last_tokens(batch, PAD).tolist() == [starts[0] + 7, starts[1], starts[2] + 13, starts[3]]
    wider = shard_batch(batch, 0, 1, 100)
    starts = starts if packed else [0, 100, 200, 300]
    assert last_tokens(wider, PAD).tolist() == [starts[0] + 7, starts[1], starts[2] + 13, starts[3]]
    nothing = batch_of([([PAD, PAD], [False, True])], packed)
    assert last_tokens(nothing, PAD).tolist() == [0]  # as transformers does


@pytest.mark.parametrize("packed", [True, False])
def test_scores_are_those_of_transformers_for_single_documents(packed):
    model = classifier()
    model.config.pad_token_id = PAD
    with torch.no_grad():
        expected = [float(model(input_ids=torch.tensor(ids)[None]).logits) for ids, _ in DOCUMENTS]
        scores = SequenceScores(model, PAD).of_documents(batch_of(DOCUMENTS, packed))
    assert scores.dtype == torch.float32 and scores.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_model_that_changes_its_scores_is_refused():
    SequenceScores(classifier(), None).check(torch.device("cpu"))
    model = classifier()
    usual = model.forward

    def doubled(*given, **named):
        output = usual(*given, **named)
        output.logits = 2 * output.logits
        return output

    model.forward = doubled
    with pytest.raises(ConfigError, match="the score of LlamaForSequenceClassification is not what its head computes"):
        SequenceScores(model, None).check(torch.device("cpu"))
    factory = tiny_factory()
    causal = factory.create_model(factory.create_config())
    with pytest.raises(ConfigError, match="model: LlamaForCausalLM has no score head"):
        SequenceScores(causal, None).check(torch.device("cpu"))
