"""Warmup, and what holds for every schedule."""

from __future__ import annotations

import math

import pytest
import torch

from arctic_hydra.component import registered
from arctic_hydra.errors import ConfigError
from arctic_hydra.scheduler.linear import LinearScheduler
from tests.scheduler.curves import PEAK, used_rates


@pytest.mark.parametrize(("ratio", "horizon", "steps"), [
    ("29%", 100, 29), ("57%", 100, 57), ("7%", 100, 7), (0.07, 100, 7), (0.1, 5, 1), (0.25, 10, 3), (0, 10, 0), (1, 7, 7),
    (1e-6, 1_000_000, 1), (0.1, 1, 1),
])  # fmt: skip
def test_warmup_ratio_is_exact_and_rounded_up(ratio, horizon, steps):
    assert LinearScheduler(warmup_ratio=ratio).warmup(horizon) == steps


@pytest.mark.parametrize("name", sorted(name for _, name in registered("scheduler")))
def test_the_first_rate_is_positive_and_the_warmup_ends_at_the_peak(name):
    rates = used_rates(registered("scheduler")["scheduler", name](warmup_ratio="20%"))
    assert rates[0] > 0
    assert rates[7] == pytest.approx(PEAK)


@pytest.mark.parametrize("horizon", [1, 2, 4, 40])
@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("name", sorted(name for _, name in registered("scheduler")))
def test_no_step_is_wasted(name, warmup, horizon):
    """ArcticTraining's first step has the rate 0 with warmup, and a decay to 0 reaches it in the last step."""
    scheduler = registered("scheduler")["scheduler", name](warmup_steps=min(warmup, horizon))
    rates = used_rates(scheduler, horizon)
    assert min(rates) > 0
    assert max(rates) == pytest.approx(PEAK) == rates[max(1, scheduler.warmup_steps) - 1]


@pytest.mark.parametrize("warmup", [0, 1, 3, 10])
def test_the_curve_would_end_at_the_step_after_the_horizon(warmup):
    scheduler = LinearScheduler(warmup_steps=warmup)
    assert scheduler.factor(10 + 1, horizon=10) == 0.0
    falling = [scheduler.factor(step, horizon=10) for step in range(max(1, warmup), 10 + 1)]
    count = len(falling)  # from the peak to the last step, in equal parts
    assert falling == pytest.approx([1 - index / count for index in range(count)])


def test_warmup_steps_override_the_ratio_and_are_limited_by_the_horizon():
    assert LinearScheduler(warmup_ratio=0.5, warmup_steps=3).warmup(10) == 3
    with pytest.raises(ConfigError, match="got 30, but the run has 10 optimizer steps"):
        LinearScheduler(warmup_steps=30).warmup(10)


@pytest.mark.parametrize(("end", "shown"), [(-0.5, "-0.5"), (math.nan, "nan")])
def test_a_curve_that_is_no_rate_is_refused_before_training(end, shown):
    class Own(LinearScheduler):
        def curve(self, progress):
            return 1.0 if progress < 0.5 else end

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ConfigError, match=f"Own has the factor {shown} at step 3 of 4, expected 0 or more"):
        Own(warmup_steps=0).create_scheduler(optimizer, 4)
