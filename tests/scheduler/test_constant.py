"""The constant schedule against that of transformers."""

from __future__ import annotations

import pytest

from arctic_hydra.scheduler.constant import ConstantScheduler
from tests.scheduler.curves import WARMUP, theirs, used_rates


def test_equals_transformers():
    expected = theirs("constant_with_warmup")
    assert used_rates(ConstantScheduler(warmup_steps=WARMUP)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
