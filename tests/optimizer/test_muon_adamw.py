"""Muon and AdamW behind one optimizer."""

from __future__ import annotations

from copy import deepcopy

import torch

from arctic_hydra.optimizer.muon import MuonFactory
from arctic_hydra.optimizer.muon_adamw import MuonAdamW
from tests.optimizer.runs import MUON, network
from tests.trainer.loop import attached


def test_a_loaded_state_continues_exactly():
    first, second = network(), network()
    optimizers = [attached(MuonFactory(**MUON)).create_optimizer(model) for model in (first, second)]
    assert all(isinstance(optimizer, MuonAdamW) for optimizer in optimizers)

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    step(first, optimizers[0], 1)
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))  # loading copies no tensor
    for model, optimizer in zip((first, second), optimizers, strict=True):
        step(model, optimizer, 2)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
