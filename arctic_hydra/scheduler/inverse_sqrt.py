"""The `inverse_sqrt` learning-rate schedule."""

from __future__ import annotations

import math

from arctic_hydra.component import component
from arctic_hydra.scheduler.base import WarmupScheduler


@component(group="scheduler", name="inverse_sqrt")
class InverseSqrtScheduler(WarmupScheduler):
    """The peak times sqrt(warmup / step) after the warm-up (Vaswani et al. 2017); needs at least one warm-up step."""

    def factor(self, step: int, horizon: int) -> float:
        """Return the factor of the peak learning rate at optimizer step `step`, from 1."""
        warmup = max(1, self.warmup(horizon))
        return step / warmup if step <= warmup else math.sqrt(warmup / step)

    def curve(self, progress: float) -> float:
        """Not used: the curve depends on the step, not on the share of the horizon."""
        raise AssertionError("inverse_sqrt defines factor(), not curve()")
