"""The `cosine` learning-rate schedule."""

from __future__ import annotations

import math

from arctic_hydra.component import component
from arctic_hydra.scheduler.base import WarmupScheduler


@component(group="scheduler", name="cosine")
class CosineScheduler(WarmupScheduler):
    """Half a cosine from the peak to 0 (Loshchilov and Hutter 2017, without restarts)."""

    def curve(self, progress: float) -> float:
        """Return the factor of the peak at `progress` in [0, 1] from the peak to the step after the horizon."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))
