"""The `inverse_sqrt` learning-rate schedule."""

from __future__ import annotations

import math

from arctic_hydra.component import component
from arctic_hydra.scheduler.base import WarmupScheduler

_TIMESCALE_STEPS = 10_000


@component(group="scheduler", name="inverse_sqrt")
class InverseSqrtScheduler(WarmupScheduler):
    """The peak times sqrt(warmup / step) after the warmup (Vaswani et al. 2017).

    Without warmup sqrt(10000 / (9999 + step)), as in transformers, whose steps count from 0.
    """

    def factor(self, step: int, horizon: int) -> float:
        """Return the factor of the peak learning rate at optimizer step `step`, from 1."""
        warmup = self.warmup(horizon)
        if step < warmup:
            return self.rise(step / warmup)
        timescale = warmup or _TIMESCALE_STEPS
        return math.sqrt(timescale / (timescale + step - max(1, warmup)))

    def curve(self, progress: float) -> float:
        """Not used: the curve depends on the step, not on the share of the horizon."""
        raise AssertionError("inverse_sqrt defines factor(), not curve()")
