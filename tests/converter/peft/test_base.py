# ruff: noqa: E501 (tables of arguments and messages)
"""Adapters on modules and tokens that the model does not have, or cannot train, are refused by name."""

from __future__ import annotations

import re

import pytest
import torch

from arctic_hydra import patterns
from arctic_hydra.converter.peft.base import check_modules
from arctic_hydra.converter.peft.lora import LoraFactory
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.vocabulary import fit_vocabulary
from tests.converter import lab
from tests.trainer.loop import attached, tiny_factory

ENVIRONMENT = [
    ("peft=lora peft.config={exclude_module:[x]}", "peft.config.exclude_module: peft's LORA has no such key; did you mean exclude_modules"),
    ("peft=any peft.peft_type=IA3 peft.config={feedforward:[x]}", "peft.config.feedforward: peft's IA3 has no such key; did you mean feedforward_modules"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), ENVIRONMENT)
def test_environment_problems(arguments, text, model, monkeypatch):
    assert re.search(text, lab.environment_problems(arguments, model, monkeypatch))


BUILT = [
    ("peft=lora peft.target_modules=[q_proj,k_prj]", r"peft.target_modules: 'k_prj' matches no module; did you mean 'k_proj' \(as in model.layers.0.self_attn.k_proj\)"),
    ("peft=lora peft.target_modules='a('", r"peft.target_modules: got 'a\(', which is not a valid regular expression \(missing \)"),
    ("peft=lora peft.modules_to_save=[embed_token]", "peft.modules_to_save: 'embed_token' matches no module; did you mean 'embed_tokens'"),
    ("peft=lora peft.target_modules=[input_layernorm]", "peft: LORA cannot be applied to LlamaForCausalLM: Target module LlamaRMSNorm"),
    ("peft=any peft.peft_type=IA3 tokenizer.add_tokens=[uno]", "tokenizer.add_tokens: 1 tokens were added, but peft's IA3 cannot train their rows"),
    ("peft=lora tokenizer.add_tokens=[uno] peft.target_modules=[q_proj,lm_head]", r"peft.target_modules: got lm_head, but 1 tokens were added, .* leave it out .*peft.modules_to_save=\[embed_tokens,lm_head\]"),
    ("peft=lora tokenizer.add_tokens=[uno] peft.target_modules='.*(q_proj|embed_tokens)'", "peft.target_modules: got model.embed_tokens, but 1 tokens were added"),
    ("peft=lora deepspeed=zero3 tokenizer.add_tokens=[uno] peft.modules_to_save=[lm_head]", r"tokenizer: got 1 tokens to add, but at ZeRO-3 .* pass peft.modules_to_save=\[lm_head,embed_tokens\]"),
    ("peft=any peft.peft_type=IA3 peft.config={target_modules:[k_proj],feedforward_modules:[],modules_to_save:[embed_tokens]} model.hf_config_kwargs={tie_word_embeddings:true}", "peft: model.embed_tokens of this model shares its weight with another module, and IA3 would untie them"),
    ("peft=lora peft.target_modules=[embed_tokens] model.hf_config_kwargs={tie_word_embeddings:true}", r"peft: model.embed_tokens of this model shares its weight with another module, and LORA would .* peft.modules_to_save=\[embed_tokens\], which"),
]  # fmt: skip


def test_unsupported_modules_and_tokens_are_refused(model, tmp_path):
    import re

    found = lab.in_ranks(1, lab.errors_of, [arguments for arguments, _ in BUILT], tmp_path, model)
    for arguments, text in BUILT:
        assert re.search(text, found[arguments]), (arguments, found[arguments])


def test_the_text_of_one_name_is_said_to_be_a_pattern():
    with pytest.raises(
        ConfigError, match=r"got the text 'q_proj', a pattern .* pass peft.target_modules=\[q_proj\], a list"
    ):
        check_modules("peft.target_modules", "q_proj", ["model.layers.0.self_attn.q_proj"])


def test_a_pattern_that_takes_exponential_time_is_stopped(monkeypatch):
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.2)
    with pytest.raises(
        ConfigError, match=r"^peft.target_modules: got '\(a\|aa\)\+', which takes more than 0.2 s on the names"
    ):
        check_modules("peft.target_modules", "(a|aa)+", ["a" * 60 + "b"])


def test_a_head_whose_bias_peft_would_drop_is_refused():
    head = torch.nn.Linear(32, 130, bias=True)
    network = tiny_factory(tie_word_embeddings=False)
    model = network.create_model(network.create_config())
    fit_vocabulary(model, 130, [128, 129], 1)
    model.set_output_embeddings(head)
    with pytest.raises(
        ConfigError, match=r"peft drops the bias of lm_head .* pass peft.modules_to_save=\[embed_tokens,lm_head\]"
    ):
        attached(LoraFactory(r=2)).convert(model)
    assert attached(LoraFactory(r=2, modules_to_save=["lm_head"])).convert(model).get_output_embeddings()
