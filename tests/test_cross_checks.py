"""Checks across components, on built runs."""

from __future__ import annotations

from typing import ClassVar, Union

import pytest

from arctic_hydra import cross_checks
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
