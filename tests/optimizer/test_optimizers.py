"""Each optimizer on real engines: DeepSpeed's Adams against torch's, Muon the same at every ZeRO stage."""

from __future__ import annotations

import shutil

import pytest
import torch

from arctic_hydra.optimizer.adamw import AdamWFactory
from arctic_hydra.optimizer.cpu_adam import CPUAdamFactory
from arctic_hydra.optimizer.fused_adam import FusedAdamFactory
from arctic_hydra.optimizer.muon import MuonFactory
from tests.ranks import run_ranks
from tests.trainer.loop import documents, full_weights, make_trainer

DATA = documents([20, 60, 10, 25, 12, 9, 31, 8] * 3, [1, 50, 7, 0, 7, 8, 20, 2] * 3)
compiled = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")


def trained(folder, optimizer, stage, **settings):
    """Train six steps of four documents; return losses, final weights, and which parameters Muon took."""
    if hasattr(optimizer, "zero_stage"):
        optimizer.zero_stage = stage
    size = 4 // torch.distributed.get_world_size()
    trainer = make_trainer(DATA, folder, stage=stage, optimizer=optimizer, micro_batch_size=size, **settings)
    rows = []
    trainer._record = rows.append
    trainer.train()
    return [row["loss"] for row in rows], full_weights(trainer)


def compare(ours, theirs, tolerance):
    (losses, weights), (expected, wanted) = ours, theirs
    assert losses == pytest.approx(expected, abs=tolerance)
    far = max(float((weights[name] - wanted[name]).abs().max()) for name in wanted)
    print(
        f"losses within {max(abs(a - b) for a, b in zip(losses, expected, strict=True)):.1e}, weights within {far:.1e}"
    )
    assert far < tolerance
    return far


ADAM = {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.9, 0.95]}


@pytest.fixture(scope="module")
def adamw(tmp_path_factory):
    return run_ranks(1, trained, tmp_path_factory.mktemp("adamw"), AdamWFactory(**ADAM), 0)[0]


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("factory", [FusedAdamFactory, CPUAdamFactory])
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 2), (2, 3)])
def test_deepspeeds_adams_equal_torchs(adamw, tmp_path, factory, ranks, stage):
    for ours in run_ranks(ranks, trained, tmp_path, factory(**ADAM), stage):
        compare(ours, adamw, 2e-5)


MUON = {"lr": 1e-2, "adam_lr": 1e-2, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def muon(tmp_path_factory):
    return run_ranks(1, trained, tmp_path_factory.mktemp("muon"), MuonFactory(**MUON), 0)[0]


@compiled
@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (1, 1), (2, 1), (2, 2), (2, 3)])
def test_muon_is_the_same_at_every_stage(muon, tmp_path, ranks, stage):
    """To the precision of Newton-Schulz in bf16, which two orders of summation leave 1e-2 of an update apart."""
    for ours in run_ranks(ranks, trained, tmp_path, MuonFactory(**MUON), stage, clipping=0.0):
        compare(ours, muon, 5e-3)
