"""The warmup-stable-decay schedule against that of transformers."""

from __future__ import annotations

import pytest

from arctic_hydra.scheduler.wsd import WSDScheduler
from tests.scheduler.curves import HORIZON, WARMUP, theirs, used_rates

WSD = {"num_decay_steps": 8, "decay_type": "linear"}


@pytest.mark.parametrize("min_lr_ratio", [0, 0.1])
def test_equals_transformers(min_lr_ratio):
    expected = theirs("warmup_stable_decay", **WSD, min_lr_ratio=min_lr_ratio)
    factory = WSDScheduler(warmup_steps=WARMUP, decay_ratio=8 / (HORIZON + 1 - WARMUP), min_lr_ratio=min_lr_ratio)
    assert used_rates(factory) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("warmup", [0, 1, 39])
def test_equals_transformers_for_the_shortest_and_longest_warmup(warmup):
    specific = {**WSD, "num_decay_steps": HORIZON + 1 - max(1, warmup), "min_lr_ratio": 0.1}
    expected = theirs("warmup_stable_decay", warmup=warmup, **specific)
    factory = WSDScheduler(warmup_steps=warmup, decay_ratio=1.0, min_lr_ratio=0.1)
    assert used_rates(factory) == pytest.approx(expected, rel=1e-6, abs=1e-9)
