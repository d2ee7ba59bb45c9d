"""Detection of loss spikes by the mean and standard deviation of recent steps (as in OLMo-core's SkipStepOptimizer)."""

from __future__ import annotations

import math
import statistics


def describe_spike(loss: float, recent: list[float], window: int, sigmas: float) -> str:
    """Return why `loss` is a spike compared with the `recent` ones, or an empty string; nothing is before `window` steps."""
    if len(recent) < window or not math.isfinite(loss):
        return ""
    mean = statistics.fmean(recent)
    deviation = statistics.pstdev(recent, mean)
    if loss <= mean + sigmas * deviation:
        return ""
    return f"its loss {loss:.4g} is a spike (mean {mean:.4g}, deviation {deviation:.3g} over {len(recent)} steps)"
