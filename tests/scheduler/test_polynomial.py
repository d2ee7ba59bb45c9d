"""The polynomial schedule against that of transformers."""

from __future__ import annotations

import pytest

from arctic_hydra.scheduler.polynomial import PolynomialScheduler
from tests.scheduler.curves import WARMUP, theirs, used_rates


def test_equals_transformers():
    expected = theirs("polynomial", lr_end=0.0, power=1.0)
    assert used_rates(PolynomialScheduler(warmup_steps=WARMUP)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
