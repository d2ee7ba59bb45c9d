"""The `linear` learning-rate schedule."""

from __future__ import annotations

from arctic_hydra.component import component
from arctic_hydra.scheduler.base import WarmupScheduler


@component(group="scheduler", name="linear")
class LinearScheduler(WarmupScheduler):
    """Linear decay from the peak to 0."""

    def curve(self, progress: float) -> float:
        """Return the factor of the peak at `progress` in [0, 1] from the peak to the step after the horizon."""
        return 1.0 - progress
