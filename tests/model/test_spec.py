"""Registered models in whole runs: every ZeRO stage, adapters, resume, evaluation, export and weights to start from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from arctic_hydra.model import registry
from arctic_hydra.model.registry import ModelSpec, register_model_spec
from arctic_hydra.tasks import check
from tests.composing import built
from tests.converter import lab

pytestmark = pytest.mark.usefixtures("lab_models")

DECODER = "model=spec model.spec=decoder model.dtype=fp32 tokenizer=bundled"
GRU = "model=spec model.spec=gru model.dtype=fp32 tokenizer=bundled data.packing=false data.max_length=64 data.overlong=keep_start"
EXPORTED = "checkpoint=[deepspeed,hf]"


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    lab.warm()


def test_ranks_and_stages_train_alike(tmp_path):
    specs = {"decoder": DECODER, "gru": GRU, "lora": f"{DECODER} peft=lora"}
    one = {name: f"{spec} trainer.gradient_accumulation_steps=2" for name, spec in specs.items()}
    two = {name: f"{spec} ranks=2 deepspeed=zero3" for name, spec in specs.items()}
    two["decoder at ZeRO-2"] = f"{DECODER} ranks=2 deepspeed=zero2"
    alone = lab.in_ranks(1, lab.train_each, one, tmp_path / "one", None)
    for name, found in lab.in_ranks(2, lab.train_each, two, tmp_path / "two", None).items():
        expected = alone[name.split()[0]]
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5), name
        for weight, value in found["weights"].items():
            torch.testing.assert_close(value, expected["weights"][weight], rtol=1e-3, atol=1e-5)


def _life_of(arguments: str, folder: Path) -> dict[str, Any]:
    """Train in one go, then in two starts; evaluate and export the last checkpoint."""
    straight = lab.train(f"{arguments} name=a", folder / "straight")
    lab.train(f"{arguments} name=a trainer.exit_iteration=1", folder / "halves")
    resumed = lab.train(f"{arguments} name=a", folder / "halves")
    evaluated = lab.perform(
        f"{arguments} task=evaluate data.eval_sources.chat.sample_count=9 data.overlong=keep_start",
        folder / "halves" / "task",
    )
    exported = lab.perform(f"{arguments} task=export", folder / "halves" / "task")
    return {"straight": straight, "resumed": resumed, "evaluated": evaluated, "export": exported["export"]}


@pytest.mark.parametrize("spec", [DECODER, GRU])
def test_a_resumed_run_is_the_same_and_is_evaluated_and_exported(spec, tmp_path):
    found = lab.in_ranks(1, _life_of, f"{spec} {EXPORTED}", tmp_path)
    assert found["resumed"]["resumed"] is not None
    assert found["resumed"]["losses"] == found["straight"]["losses"][1:]
    assert found["evaluated"]["eval/loss"] > 0
    exports = [Path(found["export"]), tmp_path / "straight" / "export", tmp_path / "halves" / "export"]
    first, *others = [load_file(path / "model.safetensors") for path in exports]
    for other in others:
        assert first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)
    config = json.loads((exports[0] / "config.json").read_text())
    assert config["model_type"] == ("llama" if spec == DECODER else "arctic_hydra_spec")


def test_exports_start_other_runs(tmp_path):
    """In the model's own layout, and with an adapter also a transformers model of that layout."""
    for spec in (DECODER, GRU):
        first = tmp_path / spec.split("=")[2].split()[0]
        lab.in_ranks(1, lab.train, f"{spec} {EXPORTED}", first)
        second = f"{spec} {EXPORTED} init_from={first / 'export'} trainer.eval_at_start=true optimizer.lr=1e-12"
        lab.in_ranks(1, lab.train, second, first / "second")
        before, after = (load_file(folder / "export" / "model.safetensors") for folder in (first, first / "second"))
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)


def test_an_adapter_is_exported_alone_on_request_and_starts_other_runs(tmp_path):
    arguments = (
        f"{GRU} {EXPORTED} peft=lora peft.target_modules=[head] trainer.head_loss=full checkpoint.hf.merge=false"
    )
    first = lab.in_ranks(1, lab.train, arguments, tmp_path)
    assert (tmp_path / "export" / "adapter_model.safetensors").exists()
    second = f"{arguments} init_from={tmp_path / 'export'} optimizer.lr=1e-12"
    after = lab.in_ranks(1, lab.train, second, tmp_path / "second")
    for name, value in first["weights"].items():
        torch.testing.assert_close(after["weights"][name], value, rtol=0, atol=1e-6)


def test_an_adapter_is_merged_into_the_export(tmp_path):
    """Also over weights from `init_from`: peft could not load the adapter over them."""
    lab.in_ranks(1, lab.train, f"{DECODER} {EXPORTED}", tmp_path / "base")
    arguments = f"{DECODER} {EXPORTED} peft=lora init_from={tmp_path / 'base' / 'export'}"
    merged = lab.in_ranks(1, lab.train, arguments, tmp_path, None, [5, 6, 7, 8])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    with torch.no_grad():
        logits = theirs(torch.tensor([[5, 6, 7, 8]])).logits[0]
    torch.testing.assert_close(logits, merged["logits"], rtol=1e-4, atol=1e-5)


def test_what_does_not_work_is_refused_before_training(tmp_path):
    cases = {
        f"{GRU.replace('data.packing=false', '')}": "data.packing: got true, but GRULanguageModel (under trainer=sft) mixes",
        f"{GRU} peft=lora": "peft.target_modules: got all-linear, but GRULanguageModel has no linear layer besides its head",
        f"{GRU} peft=lora peft.target_modules=[cells]": "peft: LORA cannot be applied to GRULanguageModel",
        f"{DECODER} converter=[tiled_mlp]": "has no MLP with gate_proj",
        f"{GRU} model.disable_activation_checkpoint=false": "has no layer_class in its spec",
    }
    found = lab.in_ranks(1, lab.errors_of, list(cases), tmp_path, None)
    for arguments, text in cases.items():
        assert text in found[arguments]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("model.spec=decodr", "model.spec: got 'decodr', expected one of decoder, gru; did you mean decoder?"),
        ("model.spec=decoder model.flavor=big", "model.flavor: got 'big', expected one of debug, base"),
        ("model.spec=gru model.config_kwargs={width:3}", "model.config_kwargs.width: GRUConfig has no such field"),
        ("model.spec=gru model.attn_implementation=sdpa", "model.attn_implementation: got sdpa, but with model=spec"),
        ("model.spec=gru peft=qlora", "peft: got qlora, but this model has no stored weights"),
        (
            "model.spec=gru ranks=2 trainer.sequence_parallel_size=2",
            "got 2, but model=spec attends by its own code, to one rank's tokens only; pass trainer.sequence_parallel_size=1",
        ),
    ],
)
def test_values_that_cannot_be_are_refused_when_composing(arguments, text):
    with pytest.raises(ValueError, match=text.replace("?", r"\?")):
        built("model=spec", *arguments.split())


def test_the_first_flavor_is_the_default():
    run = built("model=spec", "model.spec=decoder", "model.config_kwargs={hidden_size:96}")
    assert run.model.flavor == "debug"  # type: ignore[attr-defined]
    config = run.model.create_config()
    assert (config.hidden_size, config.num_hidden_layers, config.values["tie"]) == (96, 2, True)


def test_a_check_estimates_memory_and_reports_what_a_model_lacks():
    lines, errors = check.find(built(*DECODER.split(), "model.disable_activation_checkpoint=false"))
    assert not errors and "peak" in lines[0]
    lines, [error] = check.find(built(*GRU.split(), "model.compile=true", "data.packing=true"))
    assert not lines and "has no layer_class in its spec; model.compile=true needs one" in str(error)


def test_a_function_that_raises_is_one_sentence_of_the_check_and_the_run(monkeypatch):
    def broken() -> ModelSpec:
        raise ModuleNotFoundError("No module named 'nowhere'")

    gru = registry.registered_spec("gru")
    monkeypatch.setitem(registry._SPECS, "broken", replace(gru, name="broken", create=broken))
    _, [error] = check.find(built(*GRU.replace("gru", "broken").split()))
    assert str(error).startswith(
        "model.spec: the function registered as broken raises ModuleNotFoundError: No module named"
    )


def _own_loss(folder: Path) -> Any:
    from my_lab.gru import GRULanguageModel
    from my_lab.models import GRUConfig

    def twice(logits_KV: torch.Tensor, targets_K: torch.Tensor) -> torch.Tensor:
        return 2 * torch.nn.functional.cross_entropy(logits_KV, targets_K, reduction="none")

    def mean(logits_KV: torch.Tensor, targets_K: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits_KV, targets_K)

    def slower(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.0

    for name, more in (
        ("twice", {"loss": twice}),
        ("mean", {"loss": mean}),
        ("slower", {"post_optimizer_build": slower}),
    ):
        register_model_spec(name, {"debug": GRUConfig()})(
            lambda more=more: ModelSpec(model=GRULanguageModel, **more)  # type: ignore[misc]
        )
    plain, double, still = (lab.train(GRU.replace("gru", name), folder / name) for name in ("gru", "twice", "slower"))
    named = GRU.replace("gru", "twice")
    wrong = [f"{named} trainer.z_loss=1e-4", f"{named} trainer.head_loss=chunked", GRU.replace("gru", "mean")]
    return (
        plain["losses"],
        double["losses"],
        still["losses"],
        list(lab.errors_of(wrong, folder / "wrong", None).values()),
    )


def test_a_spec_brings_its_loss_and_its_optimizer_hook(tmp_path):
    plain, double, still, refused = lab.in_ranks(1, _own_loss, tmp_path)
    assert double[0] == pytest.approx(2 * plain[0], rel=1e-6)
    assert still[0] == plain[0] and still[1] > plain[1]
    assert "this model brings its own loss, which ignores trainer.z_loss=0.0001" in refused[0]
    assert "which ignores trainer.head_loss=chunked" in refused[1]
    assert "its loss returned a tensor of shape [] for" in refused[2]
