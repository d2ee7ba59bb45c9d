"""Models from a name: what cannot be had is said at once, in words."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoTokenizer

from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint, write_export
from arctic_hydra.errors import ModelError
from arctic_hydra.model import base
from arctic_hydra.model.hf import HFModelFactory
from tests.converter import lab
from tests.trainer.loop import tiny_factory


def saved(folder, **config):
    """Save a tiny model, its config changed; return the directory."""
    factory = tiny_factory()
    factory.create_model(factory.create_config()).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"model_type": "quux"}, "cannot be loaded: .*quux"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "cannot be loaded: Unrecognized configuration class"),
        ({"num_hidden_layers": 3}, "lacks 9 weights of LlamaForCausalLM, such as model.layers.2"),
    ],
)
def test_an_architecture_that_it_cannot_load(tmp_path, config, text):
    factory = HFModelFactory(name_or_path=saved(tmp_path, **config))
    with pytest.raises(ModelError, match=text):
        factory.create_model(factory.create_config())


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_export_says_of_the_cache_what_the_model_said(tmp_path, use_cache):
    factory = HFModelFactory(name_or_path=str(lab.save_model(tmp_path / "model", use_cache=use_cache)))
    model = factory.create_model(factory.create_config())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    write_export(model, model.state_dict(), tokenizer, tmp_path / "export", HuggingFaceCheckpoint())
    assert json.loads((tmp_path / "export" / "config.json").read_text())["use_cache"] is use_cache
    assert model.config.use_cache is False, "training goes on without"


def test_a_missing_hub_id_is_said_at_once_offline():
    start = time.monotonic()
    with pytest.raises(
        ModelError, match=r"'nobody/nothing' cannot be loaded: .*check the name, your access and the network"
    ):
        HFModelFactory(name_or_path="nobody/nothing").create_config()
    assert time.monotonic() - start < 30, "retries"


def test_code_beside_the_weights_does_not_run(tmp_path):
    name = saved(tmp_path, auto_map={"AutoConfig": "code.Config"}, model_type="quux")
    (tmp_path / "code.py").write_text("raise SystemError('it ran')\n")
    with pytest.raises(ModelError, match="custom code .*pass model.trust_remote_code=true if you trust that code"):
        HFModelFactory(name_or_path=name).create_config()


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


def test_bf16_on_a_gpu_without_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(
        ModelError, match="model.dtype: got bf16, which Tesla V100 does not have; pass model.dtype=fp16"
    ):
        tiny_factory(dtype="bf16").prepare()
    tiny_factory(dtype="fp16").prepare()


def test_what_text_does_not_reach_does_not_train(tmp_path):
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
        skeleton = factory.create_skeleton(factory.create_config())
    assert {n for n, p in skeleton.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
