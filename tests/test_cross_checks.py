"""Checks across components, on built runs."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Union

import pytest
from transformers import LlamaConfig

from arctic_hydra import cross_checks
from arctic_hydra.callback.base import Callback
from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.liger import LigerModelFactory
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.trainer.sft import SFTTrainer
from tests.composing import built


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_cpu_adam_on_a_gpu_wants_offloading(monkeypatch):
    monkeypatch.setattr(cross_checks, "count_gpus", lambda: 1)
    problems = built("optimizer=cpu_adam").environment_problems()
    assert any(
        line.startswith("optimizer: got cpu_adam, which runs on the CPU, but the parameters") for line in problems
    )
    offloaded = built("optimizer=cpu_adam", "deepspeed=zero2_offload").environment_problems()
    assert not any("cpu_adam, which steps" in line for line in offloaded)


@pytest.mark.parametrize(("task", "key"), [("export", "model.name_or_path"), ("preview", "data.sources.json.path")])
def test_tasks_on_the_cpu_need_neither_a_gpu_nor_what_only_training_reads(task, key):
    training = ("trainer.head_loss=liger", "callback=[memory_profiler]", "trainer.kill_switch_path=/absent/STOP")
    shown = ("model=liger", "data=json", f"task={task}", "model.attn_implementation=flash_attention_2", *training)
    absent = ("model.name_or_path=./absent", "tokenizer=bundled", "data.sources.json.path=absent.jsonl")
    assert [line.partition(":")[0] for line in built(*shown, *absent).environment_problems()] == [key]
    assert len(built(*shown, *absent, "task=train").environment_problems()) > 3


def test_an_optimizer_that_cannot_step_on_the_cpu_is_not_offloaded(monkeypatch):
    run = built("deepspeed=zero2_offload")
    monkeypatch.setattr(type(run.optimizer), "runs_on_cpu", False)
    with pytest.raises(
        ConfigError, match="optimizer=adamw cannot run there; pass optimizer=adamw, or a deepspeed option"
    ):
        run.check()
    free = built("deepspeed=zero2")
    free.deepspeed.config = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    with pytest.raises(ConfigError, match="got an option with CPU offload, but optimizer=adamw"):
        free.check()


def test_no_callback_takes_the_place_of_the_trainers_state():
    run = built("ranks=1")
    run.callback = {"trainer": Callback()}
    with pytest.raises(
        ConfigError, match=r"callback\.trainer: got a callback of this name, under which checkpoints keep"
    ):
        run.check()


@pytest.mark.parametrize("hint", [HFModelFactory | RandomModelFactory, Union[HFModelFactory, RandomModelFactory]])  # noqa: UP007
def test_hints_of_either_form_take_their_members_and_subclasses(hint):
    mine = type("Mine", (SFTTrainer,), {"__annotations__": {"model": ClassVar[hint]}, "option_name": "mine"})
    run = built("ranks=1")
    run.trainer = mine()
    for model in (HFModelFactory(name_or_path="x"), LigerModelFactory(name_or_path="x")):
        run.model = model
        assert list(cross_checks.compatibility(run)) == []
    run.model = TinyModelFactory()
    [problem] = cross_checks.compatibility(run)
    assert problem == "model: got tiny (TinyModelFactory), but trainer=mine (Mine) works with model=hf, model=random"


def test_hints_of_groups_with_several_options_hold_for_each_of_them():
    mine = type(
        "Mine", (SFTTrainer,), {"__annotations__": {"checkpoint": ClassVar[DeepSpeedCheckpoint]}, "option_name": "mine"}
    )
    run = built("ranks=1")
    run.trainer = mine()
    [problem] = cross_checks.compatibility(run)
    assert (
        problem
        == "checkpoint: got hf (HuggingFaceCheckpoint), but trainer=mine (Mine) works with checkpoint=[deepspeed]"
    )
    del run.checkpoint["hf"]
    assert list(cross_checks.compatibility(run)) == []


def test_hints_that_name_no_component_are_refused():
    hints = {"optimizer": ClassVar[int], "model": ClassVar[TinyModelFactory | None], "data": ClassVar[Any]}
    run = built("ranks=1")
    run.trainer = type("Mine", (SFTTrainer,), {"__annotations__": hints, "option_name": "mine"})()
    text = "trainer: the type hint {} of Mine names {}, expected classes of components, such as AdamWFactory"
    assert list(cross_checks.compatibility(run)) == [text.format("model", "NoneType"), text.format("optimizer", "int")]


def test_the_best_checkpoint_needs_evaluations_where_checkpoints_are_saved():
    best = "checkpoint.deepspeed.keep_best=1"
    with pytest.raises(ConfigError, match=r"saved steps \(at the end of epochs\) are not evaluated steps"):
        built(best, "checkpoint.deepspeed.save_every_n_steps=0", "checkpoint.deepspeed.save_every_n_epochs=1").check()


def test_a_checkpoint_engine_that_would_never_save_is_refused():
    with pytest.raises(
        ConfigError, match=r"checkpoint\.hf: would save nothing, as no trigger is set; pass checkpoint\.hf"
    ):
        built("checkpoint.hf.save_end_of_training=false").check()
    for others in ("checkpoint.hf.save_every_n_epochs=1", "checkpoint.hf.enabled=false", "task=export"):
        built("checkpoint.hf.save_end_of_training=false", others).check()
    built("checkpoint.deepspeed.save_every_n_steps=0", "checkpoint.deepspeed.save_end_of_training=false").check()


def test_max_length_is_checked_against_the_config_of_the_model(tmp_path):
    from arctic_hydra.assembly.run_model import check_length

    (tmp_path / "model").mkdir()
    config = {"model_type": "llama", "max_position_embeddings": 1024}
    for stored, more, limit in (
        (config, [], 1024),
        ({"text_config": config}, [], 1024),
        (config, ["model.hf_config_kwargs={max_position_embeddings:1500}"], 1500),
    ):
        (tmp_path / "model" / "config.json").write_text(json.dumps(stored))
        run = built("model=hf", "model.name_or_path=./model", "data.max_length=2Ki", *more)
        assert (
            f"data.max_length: got 2048, but the model's config has max_position_embeddings={limit}; pass "
            in "".join(line for line in run.environment_problems() if line.startswith("data.max_length"))
        )
        fitting = built("model=hf", "model.name_or_path=./model", f"data.max_length={limit}", *more)
        assert not any(line.startswith("data.max_length") for line in fitting.environment_problems())
    # On the hub, the config is known when the ranks have read it.
    with pytest.raises(ConfigError, match=r"data\.max_length: got 2048, but .* pass data\.max_length=1500, or"):
        check_length(
            built("model=hf", "model.name_or_path=org/name", "data.max_length=2Ki"),
            LlamaConfig(max_position_embeddings=1500),
        )
