"""QLoRA on the CPU: the adapter of a quantized model equals that of the same model with its weights rounded alike."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tests.converter import lab
from tests.converter.test_exports import IDS, loaded_logits

KINDS = {"nf4": 4.5 / 8, "fp4": 4.5 / 8, "int8": 1.0}
"""Maximum bytes per weight: its bits and its share of the scales."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    lab.warm()
    return lab.save_model(tmp_path_factory.mktemp("model") / "llama", hidden_size=64, intermediate_size=128)


def _quantized(kind: str) -> str:
    return f"peft=qlora peft.quantization={kind} trainer.train_iters=3 checkpoint=[]"


def rounded_and_quantized(kind, folder, model):
    """Train QLoRA, and LoRA over the dequantized weights."""
    from transformers import AutoModelForCausalLM

    run, _ = lab.compose_run(_quantized(kind), model)
    options = run.peft.quantization_config(torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(model, quantization_config=options, dtype=torch.float32)
    linear = loaded.model.layers[0].mlp.up_proj.weight
    held = linear.untyped_storage().nbytes() if kind == "int8" else _bytes_of(linear)
    rounded = lab.save_model(folder / "rounded", hidden_size=64, intermediate_size=128)
    loaded.dequantize().save_pretrained(rounded)
    ours = lab.train(_quantized(kind), folder / "quantized", model)
    theirs = lab.train("peft=lora trainer.train_iters=3 checkpoint=[]", folder / "plain", rounded)
    return ours, theirs, held / (64 * 128)


def _bytes_of(weight) -> int:
    state = weight.quant_state
    return weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_equals_lora_over_the_rounded_weights(kind, tmp_path, model):
    """Also after an evaluation, in which bitsandbytes would repack weights and lose gradients on a CPU with AVX512-BF16."""
    ours, theirs, bytes_per_weight = lab.in_ranks(1, rounded_and_quantized, kind, tmp_path, model)
    assert bytes_per_weight <= KINDS[kind]
    # bitsandbytes rounds what goes into an int8 product too.
    tolerance = 1e-5 if kind != "int8" else 2e-3
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=tolerance)
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=10 * tolerance)


def test_resume_is_bit_exact_and_the_exports_load(tmp_path, model):
    """The adapter loads over the quantized model; merging adds it to the full weights."""
    arguments = "peft=qlora trainer.train_iters=3 deepspeed=zero2 ranks=2 checkpoint.hf.merge=false"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    verdict = lab.in_ranks(2, lab.perform, arguments, whole, model)["verification"]["export"]
    assert verdict["verified"] and not verdict["unchecked"], verdict
    lab.in_ranks(2, lab.perform, f"{arguments} trainer.exit_iteration=2", parts, model)
    lab.in_ranks(2, lab.perform, arguments, parts, model)
    rows = [
        [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()] for place in (whole, parts)
    ]
    assert [row["loss"] for row in rows[0] if "loss" in row] == [row["loss"] for row in rows[1] if "loss" in row]
    adapters = [place / "export" / "adapter_model.safetensors" for place in (whole, parts)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()

    lab.in_ranks(
        1, lab.perform, arguments.replace("merge=false", "merge=true") + " task=export", whole / "task-export", model
    )
    merged = loaded_logits(whole / "export-step-00000003")
    over_whole_weights = loaded_logits(whole / "export")
    torch.testing.assert_close(merged, over_whole_weights, atol=1e-5, rtol=0)
    trained = lab.in_ranks(1, _trained_logits, tmp_path / "one", model)
    assert (trained[0] - trained[1]).abs().max() < 1e-5


def _trained_logits(folder, model):
    """Return the logits of a trained quantized model, and of its adapter loaded over the quantized model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    arguments = "peft=qlora checkpoint=[hf] checkpoint.hf.merge=false"
    ours = lab.train(arguments, folder, model, ids=IDS)["logits"]
    options = lab.compose_run(arguments, model)[0].peft.quantization_config(torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model, quantization_config=options, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, folder / "export").train()
    with torch.no_grad():
        return ours, loaded(input_ids=torch.tensor([IDS])).logits[0]


ENVIRONMENT = [
    ("peft=qlora", "peft.quantization: peft=qlora needs bitsandbytes, which is not installed"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), ENVIRONMENT)
def test_environment_problems(arguments, text, model, monkeypatch):
    assert re.search(text, lab.environment_problems(arguments, model, monkeypatch))
