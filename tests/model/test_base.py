"""What every model factory shares: attention, dtype, activation checkpointing and what is frozen."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from arctic_hydra.errors import ModelError
from arctic_hydra.model import base
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.random import RandomModelFactory
from tests.converter import lab
from tests.trainer.loop import tiny_factory


def test_flex_attention_without_gpu():
    [problem] = tiny_factory(attn_implementation="flex_attention").check_environment()
    assert "got flex_attention, which trains on CUDA only" in problem


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_without_gpu_or_package(name, monkeypatch):
    [problem] = tiny_factory(attn_implementation=name).check_environment()
    assert problem.startswith(
        f"attn_implementation: got {name}, which trains on CUDA only, and this machine has no GPU"
    )
    monkeypatch.setattr(base, "count_gpus", lambda: 1)
    monkeypatch.setattr(base, "FLASH_PACKAGES", {name: ("flash_absent", "kernels_absent")})
    [problem] = tiny_factory(attn_implementation=name).check_environment()
    assert "but flash_absent and kernels_absent are not installed; install one, or pass model.attn" in problem


def test_bf16_on_a_gpu_that_does_not_support_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(
        ModelError, match="model.dtype: got bf16, which Tesla V100 does not support; pass model.dtype=fp16"
    ):
        tiny_factory(dtype="bf16").check_dtype()
    tiny_factory(dtype="fp16").check_dtype()


def test_towers_that_text_does_not_use_are_frozen(tmp_path):
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    sight = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**text, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
        vision_config={**sight, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    factory = HFModelFactory(name_or_path=str(tmp_path), dtype="fp32")
    model = factory.create_model(factory.create_config())
    model(input_ids=torch.arange(8)[None], use_cache=False).logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == ("language_model" in name), name
    with FakeTensorMode(allow_non_fake_inputs=True):  # its vision tower draws weights by their values
        skeleton = factory.create_meta_model(factory.create_config())
    assert {n for n, p in skeleton.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize(
    ("architecture", "values", "attention", "instead"),
    [
        (
            "gptj",
            {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4},
            "arctic_varlen",
            "eager, plus data.packing",
        ),
        ("gptj", {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}, "sdpa", "eager, plus data.packing=false"),
        (
            "falcon",
            {"hidden_size": 32, "num_hidden_layers": 1},
            "arctic_varlen",
            "eager or sdpa, plus data.packing=false",
        ),
    ],
)
def test_unsupported_attention_is_refused_with_an_alternative(tmp_path, architecture, values, attention, instead):
    text = f"model.attn_implementation: got {attention}, which .*ForCausalLM does not support; pass .*={instead}"
    values = {**values, "num_attention_heads": 4} if architecture == "falcon" else values
    shape = {"architecture": architecture, "dtype": "fp32", "vocab_size": 96, "hf_config_kwargs": values}
    maker = RandomModelFactory(**shape, attn_implementation=attention)
    with pytest.raises(ModelError, match=text):
        maker.create_model(maker.create_config())
    eager = RandomModelFactory(**shape, attn_implementation="eager", disable_activation_checkpoint=True)
    eager.create_model(eager.create_config()).save_pretrained(tmp_path)
    stored = HFModelFactory(name_or_path=str(tmp_path), dtype="fp32", attn_implementation=attention)
    with pytest.raises(ModelError, match=text):
        stored.create_model(stored.create_config())


def test_a_model_that_cannot_recompute_activations_is_refused():
    maker = RandomModelFactory(architecture="jetmoe", vocab_size=96, hidden_size=32, num_hidden_layers=2)
    with pytest.raises(ModelError, match="disable_activation_checkpoint: got false, but JetMoeForCausalLM cannot"):
        maker.create_model(maker.create_config())


@pytest.mark.parametrize("kind", ["hf", "tiny", "random"])
def test_a_token_that_pads_and_ends_answers_gets_a_gradient_at_the_input(kind, tmp_path):
    """transformers builds the embedding with `padding_idx`, which leaves the row of the pad token without a gradient."""
    tokens = {"pad_token_id": 3, "eos_token_id": 3}
    if kind == "tiny":
        maker = tiny_factory(tie_word_embeddings=False, hf_config_kwargs=tokens)
    elif kind == "random":
        sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        maker = RandomModelFactory(architecture="llama", dtype="fp32", **sizes, hf_config_kwargs=tokens)
    else:
        name = str(lab.save_model(tmp_path, vocabulary=96, **tokens))
        maker = HFModelFactory(name_or_path=name, dtype="fp32")
    model = maker.create_model(maker.create_config())
    assert (model.config.pad_token_id, model.config.eos_token_id) == (3, 3)
    model(input_ids=torch.tensor([[5, 3, 7, 9]]), use_cache=False).logits.square().sum().backward()
    assert model.get_input_embeddings().weight.grad[3].any()
