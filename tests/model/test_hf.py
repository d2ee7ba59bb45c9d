"""Models by name: those that cannot be loaded are refused at once, with the reason."""

from __future__ import annotations

import json
import time

import pytest
from transformers import AutoTokenizer

from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint, write_export
from arctic_hydra.errors import ModelError
from arctic_hydra.model.hf import HFModelFactory
from tests.converter import lab
from tests.trainer.loop import tiny_factory


def saved(folder, **config):
    """Save a tiny model with a changed config; return the directory."""
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
        ({"num_hidden_layers": -1}, "config.json: num_hidden_layers: got -1, expected 0 or more"),
        ({"num_attention_heads": 0}, "cannot be loaded: ZeroDivisionError"),
        ({"dtype": "os.system"}, "cannot be loaded: AttributeError"),
        ({"architectures": 7}, "config.json: got {.*}, expected an object of values, with a list of architectures"),
        ({"intermediate_size": 99}, "cannot be loaded: its weights have other shapes than its config.json says"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "is a LlamaForSequenceClassification, which scores texts",
        ),
        (
            {"num_hidden_layers": 10**9},
            "config.json: num_hidden_layers: got 1000000000, expected 100,000 or less; use a",
        ),
        ({"hidden_size": 10**9}, "config.json: hidden_size: got 1000000000, expected 10,000,000 or less"),
        (
            {"text_config": {"vocab_size": 1e12}},
            "config.json: text_config.vocab_size: got 1000000000000.0, expected 100,",
        ),
        (
            {"_attn_implementation_internal": "evil/kernel"},
            "_attn_implementation_internal: got 'evil/kernel', expected a",
        ),
        (
            {"attn_implementation": {"text_config": "evil/kernel@1"}},
            "attn_implementation.text_config: got 'evil/kernel@1'",
        ),
        ({"num_hidden_layers": 3}, "lacks 9 weights of LlamaForCausalLM, such as model.layers.2"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused(tmp_path, config, text):
    factory = HFModelFactory(name_or_path=saved(tmp_path, **config))
    with pytest.raises(ModelError, match=text):
        factory.create_model(factory.create_config())


def test_stop_tokens_that_are_no_numbers_are_refused_before_training(tmp_path):
    factory = HFModelFactory(name_or_path=saved(tmp_path))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [[1]]}')
    with pytest.raises(ModelError, match=r"generation_config.json: eos_token_id: got \[\[1\]\], expected the number"):
        factory.create_model(factory.create_config())


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_export_keeps_the_models_use_cache(tmp_path, use_cache):
    factory = HFModelFactory(name_or_path=str(lab.save_model(tmp_path / "model", use_cache=use_cache)))
    model = factory.create_model(factory.create_config())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    write_export(model, model.state_dict(), tokenizer, tmp_path / "export", HuggingFaceCheckpoint())
    assert json.loads((tmp_path / "export" / "config.json").read_text())["use_cache"] is use_cache
    assert model.config.use_cache is False, "training goes on without"


def test_a_missing_hub_id_fails_quickly_offline():
    start = time.monotonic()
    with pytest.raises(
        ModelError, match=r"'nobody/nothing' cannot be loaded: .*check the name, your access and the network"
    ):
        HFModelFactory(name_or_path="nobody/nothing").create_config()
    assert time.monotonic() - start < 30, "retries"


def test_code_in_the_models_directory_does_not_run(tmp_path):
    name = saved(tmp_path, auto_map={"AutoConfig": "code.Config"}, model_type="quux")
    (tmp_path / "code.py").write_text("raise SystemError('it ran')\n")
    with pytest.raises(ModelError, match="custom code .*pass model.trust_remote_code=true if you trust that code"):
        HFModelFactory(name_or_path=name).create_config()
