# ruff: noqa: E501 (tables of arguments and messages)
"""Converters, adapters and engines that cannot be combined are refused when a run is composed."""

from __future__ import annotations

import pytest

from arctic_hydra.errors import ConfigError
from tests.converter import lab

REFUSED = [
    ("peft=lora converter=[freeze] converter.freeze.patterns=[embed]", "converter: got freeze with peft=lora, which freezes the whole model anyway; leave freeze out"),
    ("converter=[freeze,float8] converter.freeze.patterns=[embed]", r"converter: got \[freeze,float8\], but float8 replaces modules, .*pass converter=\[float8,freeze\]"),
    ("peft=qlora deepspeed=zero3", "peft: got qlora, but ZeRO-3 cannot shard quantized weights; pass deepspeed=zero2"),
    ("peft=qlora model=tiny", "peft: got qlora, but this model has no stored weights to load quantized; pass model=hf"),
    ("peft=lora deepspeed=zero3 tokenizer.add_tokens=[uno]", r"tokenizer: got 1 tokens to add, but at ZeRO-3 .* pass peft.modules_to_save=\[embed_tokens,lm_head\]"),
    ("peft=lora peft.target_modules=[lm_head] trainer.head_loss=chunked", "peft.target_modules: got lm_head, but trainer.head_loss=chunked reads the head's weight directly, bypassing its adapter"),
    ("peft=lora peft.target_modules=.*head trainer.head_loss=chunked", "peft.target_modules: got lm_head, but trainer.head_loss=chunked reads the head's weight directly, bypassing its adapter"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_unsupported_combinations_are_refused(arguments, text, model):
    with pytest.raises(ConfigError, match=text):
        lab.compose_run(arguments, None if "model=tiny" in arguments else model)
