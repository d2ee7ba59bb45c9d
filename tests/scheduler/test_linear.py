"""The linear schedule against that of transformers."""

from __future__ import annotations

import pytest

from arctic_hydra.scheduler.linear import LinearScheduler
from tests.scheduler.curves import WARMUP, theirs, used_rates


def test_equals_transformers():
    expected = theirs("linear")
    assert used_rates(LinearScheduler(warmup_steps=WARMUP)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("warmup", [0, 1, 39])
def test_equals_transformers_for_the_shortest_and_longest_warmup(warmup):
    expected = theirs("linear", warmup=warmup)
    assert used_rates(LinearScheduler(warmup_steps=warmup)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
