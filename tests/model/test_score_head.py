"""The score head of a classifier: which architectures have one, how it starts, and which weights fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from arctic_hydra import engine
from arctic_hydra.component import SEQUENCE_CLASSIFIER
from arctic_hydra.determinism import seed_everything
from arctic_hydra.distributed import gathered
from arctic_hydra.errors import ModelError
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.score_head import classifier_config, fit_score_head, score_head
from tests.ranks import run_ranks
from tests.trainer.loop import tiny_factory


def classifier(factory, **attached):
    """Return the classifier that a trainer of scores lets `factory` create."""
    factory.attach(SimpleNamespace(auto_class=SEQUENCE_CLASSIFIER, notify=lambda *_: None))
    return factory.create_model(classifier_config(factory.create_config()))


def shaped(architecture, **values):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64, "dtype": "fp32"}
    return RandomModelFactory(architecture=architecture, **sizes, **values)


def test_models_from_which_no_score_can_be_read_are_refused():
    with pytest.raises(ModelError, match="no AutoModelForSequenceClassification for model type 'mamba'"):
        classifier(RandomModelFactory(architecture="mamba", hidden_size=32))
    with pytest.raises(ModelError, match="BertForSequenceClassification has no linear layer `score` without bias"):
        classifier(shaped("bert", hf_config_kwargs={"is_decoder": True}))
    several = classifier(tiny_factory()).config
    several.architectures, several.num_labels = ["LlamaForSequenceClassification"], 3
    with pytest.raises(ModelError, match="model: got a LlamaForSequenceClassification of 3 labels, expected a causal"):
        classifier_config(several)


def test_a_causal_model_gets_a_new_head_and_a_classifier_keeps_its_own():
    model = classifier(tiny_factory(tie_word_embeddings=False))
    assert model.config.num_labels == 1 and score_head(model).weight.shape == (1, 32)
    own = dict(model.state_dict())
    assert fit_score_head(own, model) == (own, frozenset())
    body = {name: value for name, value in own.items() if name != "score.weight"}
    assert fit_score_head({**body, "lm_head.weight": own["score.weight"]}, model) == (body, {"score.weight"})
    adapter = {"base_model.model.score.weight": own["score.weight"]}
    assert fit_score_head(adapter, model) == (adapter, frozenset())
    factory = tiny_factory()
    causal = factory.create_model(factory.create_config())
    assert score_head(causal) is None and fit_score_head(body, causal) == (body, frozenset())


def _head(folder, stage):
    config = engine.ZeROFactory(stage=stage).fill(1, 1, int(stage == 3) + 1, "fp32", 32)
    seed_everything(7)
    with engine.model_init(config):
        weight = classifier(HFModelFactory(name_or_path=str(folder), dtype="fp32")).score.weight
    assert hasattr(weight, "ds_id") == (stage == 3)
    with gathered(weight):
        return weight.detach().clone()


def test_the_new_head_of_stored_weights_is_the_same_on_all_ranks_and_at_every_stage(tmp_path):
    factory = tiny_factory()
    factory.create_model(factory.create_config()).save_pretrained(tmp_path)
    expected = run_ranks(1, _head, tmp_path, 0)[0]
    assert 0.01 < float(expected.std()) < 0.03
    for weight in run_ranks(2, _head, tmp_path, 3):
        assert torch.equal(weight, expected)
