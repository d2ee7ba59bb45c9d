"""Trainers of an outside package: a loss alone, a nested config, and a step with a second model."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from arctic_hydra.optimizer.adamw import AdamWFactory
from arctic_hydra.optimizer.muon import MuonFactory
from arctic_hydra.trainer.sft import SFTTrainer
from tests.command import SMALL, only_run, run

MAMBA = (
    "model=random model.architecture=mamba model.attn_implementation=eager "
    "'model.hf_config_kwargs={hidden_size: 32, num_hidden_layers: 1, state_size: 4, vocab_size: 4096}'"
)


def _rows(folder, name="default"):
    return [json.loads(line) for line in (only_run(folder, name) / "metrics.jsonl").read_text().splitlines()]


def test_a_loss_is_enough_to_train_and_to_evaluate(my_lab, tmp_path):
    lab = {"PYTHONPATH": str(my_lab)}
    done = run(f"{SMALL} trainer=plain trainer.train_iters=3 tracking=[]", tmp_path, **lab)
    evaluations = [row for row in _rows(tmp_path) if "eval/loss" in row]
    assert [row["step"] for row in evaluations] == [0, 3]
    assert evaluations[1]["eval/loss"] < evaluations[0]["eval/loss"]
    assert "eval/accuracy" not in evaluations[1] and "accuracy" not in done.stdout


def test_a_hint_that_would_be_a_field_is_refused_when_the_class_is_defined():
    with pytest.raises(
        TypeError, match=r"Hinted.optimizer: .*; declare `optimizer: ClassVar\[MuonFactory \| AdamWFactory\]`"
    ):

        class Hinted(SFTTrainer):
            optimizer: MuonFactory | AdamWFactory

    class Declared(SFTTrainer):
        optimizer: ClassVar[MuonFactory | AdamWFactory]


def test_a_recurrent_model_is_refused_on_packed_rows(my_lab, tmp_path):
    small = " ".join(item for item in SMALL.split() if not item.startswith("model."))
    done = run(f"{small} trainer=plain {MAMBA} tracking=[]", tmp_path, code=2, PYTHONPATH=str(my_lab))
    assert (
        "data.packing: got true, but MambaForCausalLM (under trainer=plain) mixes the documents of a packed row"
        in done.stderr
    )


def test_a_nested_dataclass_is_a_typed_group_of_fields(my_lab, tmp_path):
    lab = {"PYTHONPATH": str(my_lab)}
    arguments = (
        "trainer=custom trainer.custom_config.my_mini_steps=1Ki trainer.custom_config.how_is_your_day=great "
        f"trainer.train_iters=1 tracking=[] checkpoint=[] {SMALL}"
    )
    run(arguments, tmp_path, **lab)
    assert (only_run(tmp_path) / "day.txt").read_text() == "great 1025"
    page = " ".join(run("--help trainer", tmp_path, **lab).stdout.split())
    assert "trainer.custom_config.my_mini_steps=10000 integer >= 1, in steps Small steps." in page
    for value, text in {
        "my_mini_steps=13": "trainer.custom_config.my_mini_steps: got 13, expected luck",
        "my_mini_steps=0": "trainer.custom_config.my_mini_steps: got 0, expected 1 or more",
        "my_mini_step=3": "did you mean trainer.custom_config.my_mini_steps?",
        "how_is_your_day=bad": "trainer.custom_config.how_is_your_day: Invalid value 'bad', expected one of [good, great]",
    }.items():
        assert text in run(f"trainer=custom trainer.custom_config.{value} --cfg job", tmp_path, code=2, **lab).stderr


def test_a_step_trains_a_second_model_too_and_resumes_it(my_lab, tmp_path):
    arguments = f"{SMALL} trainer=adversarial trainer.train_iters=3 trainer.gradient_accumulation_steps=2 tracking=[]"
    arguments = f"{arguments} deepspeed=zero2 data.packing=false checkpoint=[deepspeed]"
    lab = {"PYTHONPATH": str(my_lab)}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir()
    stopped.mkdir()
    run(arguments, straight, **lab)
    run(f"{arguments} trainer.exit_iteration=2", stopped, code=75, **lab)
    run(arguments, stopped, **lab)
    figures = [
        [(row["step"], row["loss"], row["score"]) for row in _rows(folder) if "loss" in row]
        for folder in (straight, stopped)
    ]
    assert figures[0] == figures[1] and [step for step, *_ in figures[0]] == [1, 2, 3]
    assert all(loss > 0 for _, loss, _ in figures[0]) and len({score for *_, score in figures[0]}) == 3


def _sabotaged(my_lab, folder):
    sabotage = "callback=[saboteur] callback.saboteur.moment=backward callback.saboteur.rank=0"
    arguments = f"{SMALL} {sabotage} callback.saboteur.step=2 trainer.train_iters=4 tracking=[]"
    done = run(arguments, folder, code=1, PYTHONPATH=str(my_lab))
    return " ".join((done.stdout + done.stderr).split())


def test_an_error_of_the_users_code_leaves_the_last_whole_step(my_lab, tmp_path):
    said = _sabotaged(my_lab, tmp_path)
    assert "ZeroDivisionError: sabotage step 2, the last whole one, is saved; the same command resumes from it" in said
    saved = only_run(tmp_path) / "checkpoints" / "step-00000002" / "manifest.json"
    assert json.loads(saved.read_text())["saved_after_error"] == "ZeroDivisionError: sabotage"
    assert "step 2 is saved already; the same command resumes from it" in _sabotaged(my_lab, tmp_path)
