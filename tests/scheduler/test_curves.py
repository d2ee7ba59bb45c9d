"""Every schedule against transformers' own, step by step, and at its ends."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers

from arctic_hydra.component import registered
from arctic_hydra.errors import ConfigError
from arctic_hydra.scheduler.constant import ConstantScheduler
from arctic_hydra.scheduler.cosine import CosineScheduler
from arctic_hydra.scheduler.cosine_with_min_lr import CosineWithMinLRScheduler
from arctic_hydra.scheduler.inverse_sqrt import InverseSqrtScheduler
from arctic_hydra.scheduler.linear import LinearScheduler
from arctic_hydra.scheduler.polynomial import PolynomialScheduler
from arctic_hydra.scheduler.wsd import WSDScheduler

HORIZON, WARMUP, PEAK = 40, 8, 0.2
WSD = {"num_decay_steps": 8, "decay_type": "linear", "min_lr_ratio": 0.1}


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
    """Return transformers' rates after 1, 2, ... steps: its step 0 is the zero that we do not waste a step on."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=PEAK)
    scheduler = transformers.get_scheduler(name, optimizer, warmup, horizon, scheduler_specific_kwargs=specific)
    rates = []
    for _ in range(horizon):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


@pytest.mark.parametrize(
    ("factory", "name", "specific"),
    [
        (ConstantScheduler, "constant_with_warmup", {}),
        (LinearScheduler, "linear", {}),
        (CosineScheduler, "cosine", {}),
        (CosineWithMinLRScheduler, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        (InverseSqrtScheduler, "inverse_sqrt", {}),
        (PolynomialScheduler, "polynomial", {"lr_end": 0.0, "power": 1.0}),
        (partial(WSDScheduler, decay_ratio=0.25, min_lr_ratio=0), "warmup_stable_decay", {**WSD, "min_lr_ratio": 0}),
        (partial(WSDScheduler, decay_ratio=0.25, min_lr_ratio=0.1), "warmup_stable_decay", WSD),
    ],
)
def test_equals_transformers(factory, name, specific):
    expected = theirs(name, **specific)
    assert used_rates(factory(warmup_steps=WARMUP)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("warmup", [0, 1, 39])
@pytest.mark.parametrize(
    ("factory", "name", "specific"),
    [
        (LinearScheduler, "linear", {}),
        (CosineScheduler, "cosine", {}),
        (InverseSqrtScheduler, "inverse_sqrt", {}),
        (partial(WSDScheduler, decay_ratio=1.0, min_lr_ratio=0.1), "warmup_stable_decay", WSD),
    ],
)
def test_equals_transformers_at_the_ends_of_the_warmup(factory, name, specific, warmup):
    specific = {**specific, "num_decay_steps": HORIZON - warmup} if specific else {}
    expected = theirs(name, warmup=warmup, **specific)
    assert used_rates(factory(warmup_steps=warmup)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("ratio", "horizon", "steps"), [
    ("29%", 100, 29), ("57%", 100, 57), ("7%", 100, 7), (0.07, 100, 7), (0.1, 5, 1), (0.25, 10, 3), (0, 10, 0), (1, 7, 7),
    (1e-6, 1_000_000, 1), (0.1, 1, 1),
])  # fmt: skip
def test_a_share_of_the_horizon_is_that_of_the_decimal_written_rounded_up(ratio, horizon, steps):
    assert LinearScheduler(warmup_ratio=ratio).warmup(horizon) == steps


@pytest.mark.parametrize("name", sorted(name for _, name in registered("scheduler")))
def test_first_step_moves_and_warmup_ends_at_the_peak(name):
    rates = used_rates(registered("scheduler")["scheduler", name](warmup_ratio="20%"))
    assert rates[0] > 0
    assert rates[7] == pytest.approx(PEAK)


@pytest.mark.parametrize("factory", [LinearScheduler, CosineScheduler, PolynomialScheduler, WSDScheduler])
@pytest.mark.parametrize("horizon", [1, 2, 7, 40])
def test_pitfall_12_last_step_has_the_last_value(factory, horizon):
    assert used_rates(factory(warmup_ratio=0), horizon)[-1] == pytest.approx(0.0, abs=1e-12)


def test_warmup_steps_win_over_the_ratio_and_may_not_pass_the_horizon():
    assert LinearScheduler(warmup_ratio=0.5, warmup_steps=3).warmup(10) == 3
    with pytest.raises(ConfigError, match="got 30, but the run has 10 optimizer steps"):
        LinearScheduler(warmup_steps=30).warmup(10)
