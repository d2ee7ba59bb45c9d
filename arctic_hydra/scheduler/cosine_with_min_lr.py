"""The `cosine_with_min_lr` learning-rate schedule."""

from __future__ import annotations

import math

from arctic_hydra.component import component
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.scheduler.base import WarmupScheduler


@component(group="scheduler", name="cosine_with_min_lr")
class CosineWithMinLRScheduler(WarmupScheduler):
    """Half a cosine from the peak to a fraction of it."""

    min_lr_ratio: HumanFloat = number(0.1, minimum=0, maximum=1)
    """Learning rate at the end of the curve, as a fraction of the peak."""

    def curve(self, progress: float) -> float:
        """Return the factor of the peak at `progress` in [0, 1] from the peak to the step after the horizon."""
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
