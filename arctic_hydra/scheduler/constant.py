"""The `constant` learning-rate schedule."""

from __future__ import annotations

from arctic_hydra.component import component
from arctic_hydra.scheduler.base import WarmupScheduler


@component(group="scheduler", name="constant")
class ConstantScheduler(WarmupScheduler):
    """The peak learning rate after the warmup, to the end."""

    def curve(self, progress: float) -> float:
        """Return the factor of the peak at `progress` in [0, 1] from the peak to the step after the horizon."""
        return 1.0
