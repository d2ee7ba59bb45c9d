"""Tiled MLPs: the same numbers for any number of tokens, in this model only."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.converter.tiled_mlp import TiledMLP
from arctic_hydra.errors import ModelError
from tests.trainer.loop import tiny_factory


def test_tiling_changes_this_model_only_and_needs_an_mlp():
    factory = tiny_factory()
    changed, other = (factory.create_model(factory.create_config()) for _ in range(2))
    TiledMLP().convert(changed)
    mlps = [model.model.layers[0].mlp for model in (changed, other)]
    assert ["forward" in vars(mlp) for mlp in mlps] == [True, False]
    with pytest.raises(ModelError, match="trainer.tiled_mlp_compute: Linear has no MLP with gate_proj"):
        TiledMLP().convert(torch.nn.Linear(2, 2))


def test_a_row_shorter_than_the_tiles():
    factory = tiny_factory()
    torch.manual_seed(0)
    model = factory.create_model(factory.create_config())
    mlp = model.model.layers[0].mlp
    x = torch.randn(1, 3, 32, requires_grad=True)
    expected = torch.autograd.grad(mlp(x).sum(), [x, mlp.up_proj.weight])
    TiledMLP().convert(model)
    for ours, theirs in zip(torch.autograd.grad(mlp(x).sum(), [x, mlp.up_proj.weight]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
