# ruff: noqa: E501 (tables of arguments and messages)
"""Every type of the installed peft that adapts layers trains, and its adapter loads with peft to equal logits."""

from __future__ import annotations

import re

import pytest
import torch

from arctic_hydra.converter.peft import catalog
from arctic_hydra.converter.peft.base import UNSUPPORTED
from arctic_hydra.errors import ConfigError
from tests.converter import lab
from tests.converter.test_exports import IDS, loaded_logits

LAYERS = "target_modules:[q_proj,v_proj]"


CONFIGS = {
    "BOFT": f"{LAYERS},boft_block_size:4",
    "C3A": f"{LAYERS},block_size:8",
    "FOURIERFT": f"{LAYERS},n_frequency:64",
    "FROD": f"{LAYERS},progressbar:false",
    "IA3": "target_modules:[k_proj,v_proj,down_proj],feedforward_modules:[down_proj]",
    "LN_TUNING": "",
    "MISS": f"{LAYERS},r:8",
    "OFT": f"{LAYERS},oft_block_size:4,r:0",
    "PSOFT": f"{LAYERS},r:8",
    "ROAD": f"{LAYERS},group_size:8",
    "SHADOW": "",
    "SHIRA": f"{LAYERS},r:4",
    "TRAINABLE_TOKENS": "token_indices:[0,1,2,3]",
    "VBLORA": f"{LAYERS},vector_length:8,num_vectors:32",
    "WAVEFT": f"{LAYERS},n_frequency:64",
}


NEEDS = {"ADAMSS": "scikit-learn"}
"""Types for which peft needs another package."""
MIXES = dict.fromkeys(("LILY", "SHADOW"), "mixes the documents of a packed row")
"""Types that mix tokens outside the model's attention, which shows once their weights are no longer zero: the router of LILY
averages over the row, and SHADOW has layers of its own."""


def train_each(folder, model):
    found = {}
    for name in sorted(catalog.types().keys() - UNSUPPORTED.keys()):
        values = CONFIGS.get(name, LAYERS)
        arguments = f"peft=any peft.peft_type={name} peft.config={{{values}}} checkpoint=[hf] checkpoint.hf.merge=false"
        try:
            found[name] = lab.train(arguments, folder / name, model, ids=IDS)
        except ConfigError as error:
            found[name] = str(error)
    return found


@pytest.mark.slow
def test_every_type_that_adapts_layers_trains_and_is_exported(tmp_path):
    lab.warm()
    model = lab.save_model(tmp_path / "model")
    found = lab.in_ranks(1, train_each, tmp_path, model)
    assert len(found) > 20
    for name, result in found.items():
        if isinstance(result, str):
            assert (NEEDS | MIXES).get(name, "a working configuration") in result, name
            continue
        assert result["losses"][1] != result["losses"][0] and all(norm > 0 for norm in result["norms"]), name
        logits = loaded_logits(tmp_path / name / "export")
        torch.testing.assert_close(logits, result["logits"], atol=1e-5, rtol=0, msg=name)


REFUSED = [
    ("peft=any peft.peft_type=prefix_tuning", "peft.peft_type: got PREFIX_TUNING, which is not supported: it prepends virtual tokens to the text"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_a_type_that_cannot_be_trained_is_refused(arguments, text, model):
    with pytest.raises(ConfigError, match=text):
        lab.compose_run(arguments, None if "model=tiny" in arguments else model)


ENVIRONMENT = [
    ("peft=any peft.peft_type=IA4", "peft.peft_type: got IA4, expected one of .*; did you mean IA3"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), ENVIRONMENT)
def test_environment_problems(arguments, text, model, monkeypatch):
    assert re.search(text, lab.environment_problems(arguments, model, monkeypatch))
