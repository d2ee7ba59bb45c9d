"""Generation settings of exports: trained stop tokens are included, ids with another meaning in the tokenizer are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 32}
SPECIAL = {"<s>": 1, "<|begin|>": 2, "</s>": 5, "<|eom|>": 6, "<|eot|>": 7, "<|user|>": 8, "<pad>": 9}


def make_tokenizer(**named: str) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0} | SPECIAL | {f"w{index}": index for index in range(32) if index not in (0, *SPECIAL.values())}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **named)


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


CASES = {
    # eos and bos of config and generation config (None: as the config has it), trained, tokenizer; eos, pad and bos of the export
    "defaults of the class": ({}, None, [5], NAMED, (5, 9, 1)),
    "trained, eos": ({}, None, [7], NAMED, ([7, 5], 9, 1)),
    "several": ({}, None, [7, 6], {**NAMED, "eos_token": "<|eot|>"}, ([7, 6], 9, 1)),
    "texts": ({}, None, [], NAMED, (5, 9, 1)),
    "the model's own": (
        {"eos_token_id": 5},
        {"eos_token_id": [5, 8]},
        [7],
        {**NAMED, "eos_token": "<|eot|>"},
        ([7, 5, 8], 9, 1),
    ),
    "a list with the default": ({}, {"eos_token_id": [2, 8]}, [7], NAMED, ([7, 5, 2, 8], 9, 1)),
    "ordinary tokens here": ({"eos_token_id": 11}, {"eos_token_id": [12, 500]}, [7], NAMED, ([7, 5], 9, 1)),
    "begins a text here": ({"eos_token_id": 1}, None, [7], NAMED, ([7, 5], 9, 1)),
    "pad is eos": ({}, None, [7], {**NAMED, "pad_token": "</s>"}, ([7, 5], 5, 1)),
    "another bos": ({"bos_token_id": 11}, None, [5], {**NAMED, "bos_token": "<|begin|>"}, (5, 9, 2)),
    "no bos": ({}, None, [5], {"eos_token": "</s>", "pad_token": "<pad>"}, (5, 9, None)),
    "the model's own bos": ({"bos_token_id": 5}, None, [5], {"eos_token": "</s>", "pad_token": "<pad>"}, (5, 9, 5)),
    "no eos": ({}, None, [], {"pad_token": "<pad>"}, (None, 9, None)),
}


def exported(folder: Path, model: Any, tokenizer: Any, trained: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config and the generation config of an export."""
    from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint, write_export

    write_export(model, model.state_dict(), tokenizer, folder, HuggingFaceCheckpoint(), trained)
    config, generation = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "generation_config"))
    return config, generation


@pytest.mark.parametrize("case", CASES)
def test_stop_padding_and_bos_tokens_of_an_export(case, libraries, tmp_path) -> None:
    values, own, trained, named, expected = CASES[case]
    model = libraries.Llama(libraries.LlamaConfig(**SIZES, **values))
    if own is not None:
        model.generation_config = libraries.transformers.GenerationConfig(temperature=0.6, do_sample=True, **own)
    before = model.config.to_dict(), model.generation_config.to_dict()
    for said in exported(tmp_path / "export", model, make_tokenizer(**named), trained):
        assert tuple(said.get(f"{name}_token_id") for name in ("eos", "pad", "bos")) == expected
    assert own is None or said["temperature"] == 0.6
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before, "the configs of training are restored"


def test_a_config_that_accepts_one_stop_token_gets_the_first(libraries, tmp_path) -> None:
    """Otherwise the export would fail at the end of a run."""
    from huggingface_hub.errors import StrictDataclassError

    class OneStop(libraries.LlamaConfig):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "eos_token_id" and not isinstance(value, int):
                raise StrictDataclassError("expected int")
            super().__setattr__(name, value)

    model = libraries.Llama(OneStop(**SIZES))
    config, generation = exported(tmp_path / "export", model, make_tokenizer(**NAMED), [7, 6])
    assert (config["eos_token_id"], generation["eos_token_id"]) == (7, [7, 6, 5])


def test_configs_of_an_export_show_no_secrets_and_are_otherwise_unchanged(tmp_path) -> None:
    from arctic_hydra.checkpoint.export_config import mask_configs

    secret, labels = "hf_AbcdefghAbcdefghAbcdefgh", {"B-secret": 1, "password": 2}
    plain = json.dumps({"label2id": labels, "pad_token_id": 0, "a": [1]})  # as another program would format it
    held = {
        "task": {"api_key": "x", "key": 0, "token": [True, 1.5]},
        "b": secret,
        "label2id": labels,
        "pad_token_id": 0,
    }
    for name, content in (
        ("config.json", json.dumps(held)),
        ("generation_config.json", plain),
        (
            "adapter_config.json",
            adapter := json.dumps({"peft_type": "VERA", "projection_prng_key": 0, "private_key": 0}),
        ),
        ("tokenizer_config.json", json.dumps({"token": "t"})),
        ("chat_template.jinja", f"{{{{ {{'password': token}} }}}} token='x' {secret}"),
    ):
        (tmp_path / name).write_text(content)
    mask_configs(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        **held,
        "task": {**held["task"], "api_key": "***"},
        "b": "***",
    }
    assert (tmp_path / "adapter_config.json").read_text() == adapter
    assert (tmp_path / "generation_config.json").read_text() == plain
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"token": "t"}
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ {'password': token} }} token='x' ***"
