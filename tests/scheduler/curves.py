"""Learning rates step by step: ours, and those of transformers."""

from __future__ import annotations

import torch
import transformers

HORIZON, WARMUP, PEAK = 40, 8, 0.2


def used_rates(factory, horizon=HORIZON):
    """Return the learning rate of each optimizer step, as the trainer reads it."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=PEAK)
    scheduler = factory.create_scheduler(optimizer, horizon)
    rates = []
    for _ in range(horizon):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def theirs(name, horizon=HORIZON, warmup=WARMUP, **specific):
    """Return transformers' rates of the steps that train: those of its step 0, where warmup has the rate 0, and of its last
    step, where a decay has, are left out."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=PEAK)
    skipped = 1 if warmup else 0
    scheduler = transformers.get_scheduler(
        name, optimizer, warmup, horizon + skipped, scheduler_specific_kwargs=specific
    )
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(horizon):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates[skipped:][:horizon]
