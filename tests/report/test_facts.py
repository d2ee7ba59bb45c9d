"""What a run says of its model: figures for every kind of config, and never an error."""

from __future__ import annotations

import math

import pytest

from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.report.facts import model_facts
from tests.converter import lab

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 96}
HEADS = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
GEMMA = {"vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8, "head_dim": 8, "global_head_dim": 16}
MODELS = {
    "llama": (HEADS, 4 * 8),
    # A last layer of full attention has heads of another size than the one before it.
    "gemma4_text": ({**HEADS, "hf_config_kwargs": GEMMA}, 4 * (8 + 16) // 2),
    "mamba": ({}, 0),
}


def factory(architecture: str) -> RandomModelFactory:
    return RandomModelFactory(architecture=architecture, dtype="fp32", **{**SIZES, **MODELS[architecture][0]})


@pytest.mark.parametrize("architecture", MODELS)
def test_facts_of_a_model_hold_what_its_config_tells(architecture: str) -> None:
    maker = factory(architecture)
    model = maker.create_model(maker.create_config())
    facts = model_facts(model)
    assert facts.parameters == facts.trainable == sum(p.numel() for p in model.parameters())
    body = facts.parameters - 96 * 32 * (2 if architecture == "llama" else 1)
    assert facts.flops_shape == (6 * body, 6 * 96 * 32, 2, MODELS[architecture][1])


def test_a_frozen_parameter_and_an_unused_expert_cost_less() -> None:
    maker = factory("llama")
    model = maker.create_model(maker.create_config())
    body = (
        2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
    )  # attention, MLP and two norms per layer; last norm
    assert model_facts(model).flops_shape[:2] == (6 * body, 6 * 96 * 32)
    model.requires_grad_(False)
    assert model_facts(model).flops_shape[:2] == (4 * body, 4 * 96 * 32)

    more = {"num_local_experts": 4, "num_experts_per_tok": 1}
    maker = RandomModelFactory(architecture="mixtral", dtype="fp32", **SIZES, **HEADS, hf_config_kwargs=more)
    model = maker.create_model(maker.create_config())
    router, experts = 32 * 4, 4 * 3 * 32 * 48
    assert model_facts(model).flops_shape[0] == 6 * (body - 2 * 3 * 32 * 48 + 2 * (router + experts / 4))


RUN = (
    "model=random tokenizer=bundled checkpoint=[] model.vocab_size=4Ki model.hidden_size=32 model.num_hidden_layers=2 "
    "model.dtype=fp32"
)
CASES = {
    "gemma4": f"{RUN} model.architecture=gemma4_text model.intermediate_size=48 model.num_attention_heads=4 "
    "model.num_key_value_heads=2 model.head_dim=8 model.hf_config_kwargs="
    "{vocab_size_per_layer_input:4096,hidden_size_per_layer_input:8,global_head_dim:16}",
    "mamba": f"{RUN} model.architecture=mamba data.packing=false",
}


def test_models_whose_layers_differ_or_have_no_heads_train(tmp_path: object) -> None:
    lab.warm()
    for found in lab.in_ranks(1, lab.train_each, CASES, tmp_path, None).values():
        assert found["losses"] == pytest.approx([math.log(4096)] * 2, rel=0.02)
