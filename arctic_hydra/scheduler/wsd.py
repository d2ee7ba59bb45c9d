"""The `wsd` learning-rate schedule: warmup, stable, decay."""

from __future__ import annotations

from arctic_hydra.component import component
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.scheduler.base import WarmupScheduler


@component(group="scheduler", name="wsd")
class WSDScheduler(WarmupScheduler):
    """Warmup, a plateau at the peak, then linear decay (MiniCPM, Hu et al. 2024)."""

    decay_ratio: HumanFloat = number(0.1, minimum=0, maximum=1)
    """Share of the steps after the warmup in which the rate decays."""
    min_lr_ratio: HumanFloat = number(0.0, minimum=0, maximum=1)
    """Learning rate at the end of the curve, as a fraction of the peak; the warmup starts from the same value."""

    def rise(self, progress: float) -> float:
        """Return the factor of the peak at `progress` in (0, 1] of the warmup."""
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * progress

    def curve(self, progress: float) -> float:
        """Return the factor of the peak at `progress` in [0, 1] from the peak to the step after the horizon."""
        if self.decay_ratio == 0 or progress <= 1.0 - self.decay_ratio:
            return 1.0
        return self.rise((1.0 - progress) / self.decay_ratio)
