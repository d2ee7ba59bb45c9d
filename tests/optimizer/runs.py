"""Short training runs for comparing optimizers."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.loop import documents, full_weights, make_trainer, tiny_factory

DATA = documents([20, 60, 10, 25, 12, 9, 31, 8] * 3, [1, 50, 7, 0, 7, 8, 20, 2] * 3)


ADAM = {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.9, 0.95]}


MUON = {"lr": 1e-2, "adam_lr": 1e-2, "weight_decay": 0.1}


def trained(folder, optimizer, stage, **settings):
    """Train six steps of four documents; return losses and final weights."""
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


def network(**values):
    torch.manual_seed(0)
    factory = tiny_factory(**values)
    return factory.create_model(factory.create_config())
