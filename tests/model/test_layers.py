"""The decoder layers of transformers' models."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra import distributed
from arctic_hydra.errors import ModelError
from arctic_hydra.model.layers import compile_layers, expert_blocks, layer_configs, layers
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.tiny import TinyModelFactory
from tests.ranks import run_ranks
from tests.trainer.loop import documents, full_weights, make_trainer, tiny_factory


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


class Routed(torch.nn.Module):
    """A layer whose experts are separate modules, called one by one."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList(torch.nn.Linear(32, 32, bias=False) for _ in range(count))

    def forward(self, hidden):
        return self.experts[distributed.World.from_env().rank](
            hidden
        )  # as a router may choose for all tokens of a rank


class RoutedModelFactory(TinyModelFactory):
    """A model whose ranks never use the same experts."""

    def create_model(self, config):
        model = super().create_model(config)
        for layer in layers(model):
            layer.mlp = Routed()
        return model


@pytest.mark.parametrize(
    ("architecture", "values", "names"),
    [
        ("qwen3_moe", {"num_experts": 4}, ["mlp.experts"]),
        ("mixtral", {"num_local_experts": 4}, ["mlp.experts"]),
        ("gpt_oss", {"num_local_experts": 4}, ["mlp.experts"]),
        ("deepseek_v3", {"n_routed_experts": 4, "first_k_dense_replace": 0}, ["mlp.experts"]),
        ("doge", {"is_moe": False}, []),
        ("llama", {}, []),
    ],
)
def test_the_experts_of_transformers_are_found(architecture, values, names):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **shape, **values))
    found = expert_blocks(model)
    assert [name.partition("layers.0.")[2] for name, module in model.named_modules() if module in found] == names


def test_a_list_of_experts_is_a_block_with_the_module_that_calls_it():
    factory = RoutedModelFactory(**vars(tiny_factory()))
    model = factory.create_model(factory.create_config())
    assert [type(block) for block in expert_blocks(model)] == [Routed, Routed]


def test_experts_that_cannot_be_gathered_as_a_block_are_refused():
    model = torch.nn.Module()
    model.parts = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    with pytest.raises(
        ModelError, match=r"model\.parts \(ModuleDict\) has experts and no forward method, .* pass deepspeed=zero2"
    ):
        expert_blocks(model)
    factory = tiny_factory()
    dense = factory.create_model(factory.create_config())
    dense.config.num_experts = 8
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has experts \(num_experts=8\) under unknown names"):
        expert_blocks(dense)


def _train(folder, stages):
    found = []
    for stage in stages:
        factory = RoutedModelFactory(**vars(tiny_factory(dtype="fp32")))
        trainer = make_trainer(documents([12] * 8, [4] * 8), folder, stage=stage, model=factory)
        trainer.train()
        found.append(full_weights(trainer))
    return found


def test_ranks_that_use_different_experts_train_at_zero_3_as_without(tmp_path):
    for plain, sharded in run_ranks(2, _train, tmp_path, (0, 3)):
        for name, weights in plain.items():
            torch.testing.assert_close(sharded[name], weights, rtol=1e-4, atol=1e-6, msg=name)
