"""`deterministic=true`: torch's deterministic algorithms."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy
import pytest
import torch

from arctic_hydra import determinism
from arctic_hydra.checkpoint.writer import load_tensors
from arctic_hydra.config import run_id
from tests.command import SMALL, only_run, run
from tests.composing import built
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer, tiny_factory


def _losses(folder, settings, deterministic):
    """Return the losses with each ZeRO stage and dtype, and whether torch is restricted to deterministic algorithms."""
    if deterministic:
        determinism.use_deterministic_algorithms()
    found = []
    for stage, dtype in settings:
        trainer = make_trainer(documents([12] * 4, [4] * 4), folder, stage=stage, model=tiny_factory(dtype=dtype))
        rows = []
        trainer._record = rows.append
        trainer.train()
        found += [value for row in rows for value in (row["loss"], row["grad_norm"])]
    return found, torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_deterministic_algorithms_train_the_same_at_every_stage(tmp_path):
    """torch then fills uninitialized memory with NaN, which no step may read."""
    settings = [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")]
    usual, strict = (run_ranks(2, _losses, tmp_path, settings, deterministic)[0] for deterministic in (False, True))
    assert usual[1:] == (False, None) and strict[1:] == (True, ":4096:8")
    assert len(strict[0]) == 4 * 2 * 2 and strict[0] == pytest.approx(usual[0], rel=1e-3)


def test_a_run_asks_for_them_by_its_config(tmp_path):
    digests = []
    for name in ("one", "two"):
        run(f"{SMALL} trainer.train_iters=2 tracking=[] deterministic=true name={name}", tmp_path)
        digests.append((only_run(tmp_path, name) / "export" / "model.safetensors").read_bytes())
    assert digests[0] == digests[1]
    assert run_id(built("deterministic=true")) != run_id(built()) == run_id(built("deterministic=false"))


def test_every_generator_continues_after_a_weights_only_load(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(numpy.random.normal()), float(torch.rand(()))

    draw()
    torch.save(determinism.random_state(), tmp_path / "state.pt")
    expected = draw()
    draw()
    determinism.set_random_state(load_tensors(tmp_path / "state.pt"))
    assert draw() == expected


def test_random_states_are_those_of_before_the_context() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(numpy.random.normal()), float(torch.rand(()))

    state = determinism.random_state()
    expected = draw()
    determinism.set_random_state(state)
    drawn = []
    for _ in range(2):
        with determinism.kept_random_state():
            determinism.seed_everything(5)
            drawn.append(draw())
    assert drawn[0] == drawn[1] and draw() == expected
