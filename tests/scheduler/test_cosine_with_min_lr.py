"""The cosine schedule with a minimum against that of transformers."""

from __future__ import annotations

import pytest

from arctic_hydra.scheduler.cosine_with_min_lr import CosineWithMinLRScheduler
from tests.scheduler.curves import WARMUP, theirs, used_rates


def test_equals_transformers():
    expected = theirs("cosine_with_min_lr", min_lr_rate=0.1)
    assert used_rates(CosineWithMinLRScheduler(warmup_steps=WARMUP)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
