"""The decoder layers of transformers' models."""

from __future__ import annotations

import torch

from arctic_hydra.model.layers import compile_layers, layer_configs, layers
from arctic_hydra.model.random import RandomModelFactory
from tests.trainer.loop import tiny_factory


def test_a_model_of_equal_layers_has_one_config():
    config = tiny_factory().create_config()
    assert layer_configs(config) == [config]


def test_layers_that_differ_have_a_config_each():
    config = RandomModelFactory(architecture="gemma4_text", hf_config_kwargs={"global_head_dim": 16}).create_config()
    configs = layer_configs(config)
    assert len(configs) == config.num_hidden_layers and {layer.head_dim for layer in configs} == {256, 16}


def test_compiling_leaves_the_logits_as_they_are():
    factory, ids = tiny_factory(), torch.arange(9)[None]
    model = factory.create_model(factory.create_config()).eval()
    expected = model(ids).logits
    compile_layers(model, "eager")
    assert [layer._compiled_call_impl is not None for layer in layers(model)] == [True, True]
    torch.testing.assert_close(model(ids).logits, expected)
