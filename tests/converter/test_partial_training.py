"""Runs that train adapters or a part of the model: checkpoints, resume, evaluation and starting weights."""

from __future__ import annotations

import json
import shutil

import pytest

from arctic_hydra.assembly import base_weights
from arctic_hydra.errors import ArcticHydraError
from tests.converter import lab


@pytest.mark.parametrize(("name", "revision"), [("model", None), ("./model", "v2"), ("a/b", "v2"), ("a/b", None)])
def test_the_base_that_an_adapter_names_is_found_from_any_directory(name, revision, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "model")
    arguments = f"peft=lora model.name_or_path={name}" + (f" model.revision={revision}" if revision else "")
    run = lab.compose_run(arguments)[0]
    base = (str(tmp_path / "model"), None) if "model" in name else (name, revision)
    assert base_weights.adapter_base(run) == base


def losses(run_dir) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
@pytest.mark.parametrize(
    "kind", ["peft=lora peft.lora_dropout=0.1", "converter=[freeze] converter.freeze.patterns=[embed,layers.0]"]
)
def test_resume_from_a_checkpoint_of_the_trained_weights_is_bit_exact(kind, ranks, stage, model, tmp_path):
    """The checkpoint lacks the frozen weights, which are read from the model's files again."""
    arguments = f"{kind} trainer.train_iters=4 deepspeed=zero{stage} ranks={ranks} model.dtype=bf16"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    lab.in_ranks(ranks, lab.perform, arguments, whole, model)
    lab.in_ranks(ranks, lab.perform, f"{arguments} trainer.exit_iteration=2", parts, model)
    from arctic_hydra.checkpoint.full_weights import read_checkpoint_weights

    held = read_checkpoint_weights(parts / "checkpoints" / "step-00000002")
    assert held and not any("layers.0.mlp" in name and "lora" not in name for name in held)
    lab.in_ranks(ranks, lab.perform, arguments, parts, model)
    assert losses(parts) == losses(whole)
    name = "adapter_model.safetensors" if "lora" in kind else "model.safetensors"
    assert (parts / "export" / name).read_bytes() == (whole / "export" / name).read_bytes()


def test_an_adapter_resumes_on_fewer_ranks_is_evaluated_and_starts_other_runs(model, tmp_path):
    base = "peft=dora trainer.train_iters=4 deepspeed=zero2 checkpoint.hf.merge=false"
    evaluated = "data.eval_sources.chat.sample_count=6 data.overlong=keep_start"
    run_dir = tmp_path / "run"
    lab.in_ranks(2, lab.perform, f"{base} ranks=2 trainer.exit_iteration=2 {evaluated}", run_dir, model)
    one = f"{base} ranks=1 trainer.gradient_accumulation_steps=2 {evaluated}"
    lab.in_ranks(1, lab.perform, one, run_dir, model)
    whole = tmp_path / "whole"
    lab.in_ranks(2, lab.perform, f"{base} ranks=2 {evaluated}", whole, model)
    assert losses(run_dir) == pytest.approx(losses(whole), rel=1e-6)
    outcome = lab.in_ranks(1, lab.perform, f"{one} task=evaluate", run_dir / "task-evaluate", model)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert outcome["eval/loss"] == pytest.approx(rows[-1]["eval/loss"], rel=1e-6)
    for number, start in enumerate((run_dir / "export", run_dir / "checkpoints" / "step-00000004")):
        again = tmp_path / f"again-{number}"
        lab.in_ranks(1, lab.perform, f"{one} init_from={start} trainer.train_iters=1", again, model)
        first = json.loads((again / "metrics.jsonl").read_text().splitlines()[0])
        assert first["eval/loss"] == pytest.approx(rows[-1]["eval/loss"], rel=1e-6), start


def test_an_adapter_over_another_runs_weights_names_them_as_its_base(model, tmp_path):
    """`init_from` a full fine-tuning becomes the base of the adapter, whose export names it."""
    lab.in_ranks(1, lab.perform, "checkpoint=[hf]", tmp_path / "full", model)
    over = tmp_path / "full" / "export"
    lab.in_ranks(1, lab.perform, f"peft=lora init_from={over}", tmp_path / "adapter", model)
    adapter = json.loads((tmp_path / "adapter" / "export" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(over)
    assert adapter["revision"] is None


def test_a_base_model_other_than_the_trained_one_is_refused(model, tmp_path):
    base = shutil.copytree(model, tmp_path / "base")
    arguments = "peft=lora trainer.train_iters=4"
    lab.in_ranks(1, lab.perform, f"{arguments} trainer.exit_iteration=2", tmp_path / "run", base)
    lab.save_model(base, initializer_range=0.1)
    found = lab.in_ranks(1, lab.errors_of, [arguments], tmp_path / "none", base)
    assert found[arguments] == "trained", "a separate run"

    def tried(task: str, place) -> str:
        try:
            return str(lab.perform(f"{arguments} {task}", place, base))
        except ArcticHydraError as error:
            return str(error)

    export = lab.in_ranks(1, tried, "task=export", tmp_path / "run" / "task-export")
    assert "the frozen weights they were trained with differ from this model's" in export
    resumed = lab.in_ranks(1, tried, "", tmp_path / "run")
    assert "was saved by a different run: frozen_weights: checkpoint" in resumed
