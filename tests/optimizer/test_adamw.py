"""torch's AdamW with the fields of the option."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.optimizer.adamw import AdamWFactory
from tests.optimizer.runs import ADAM, network


def test_the_fields_reach_torch():
    optimizer = AdamWFactory(**ADAM, eps=1e-6).create_optimizer(network())
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed, undecayed = optimizer.param_groups
    for group in (decayed, undecayed):
        assert (group["lr"], tuple(group["betas"]), group["eps"], group["fused"]) == (1e-2, (0.9, 0.95), 1e-6, True)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_betas_outside_their_range_are_refused(betas):
    with pytest.raises(ValueError, match=r"betas: got .*, expected two numbers in \[0, 1\)"):
        AdamWFactory(betas=betas)
