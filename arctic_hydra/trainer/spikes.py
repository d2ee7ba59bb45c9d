"""When a loss is a spike: against the mean and the deviation of the steps before it (as OLMo-core's SkipStepOptimizer)."""

from __future__ import annotations

import math
import statistics


def describe_spike(loss: float, recent: list[float], window: int, sigmas: float) -> str:
    """Say why `loss` is a spike after the `recent` ones, or return an empty string; none is one until `window` are known."""
    if len(recent) < window or not math.isfinite(loss):
        return ""
    mean = statistics.fmean(recent)
    deviation = statistics.pstdev(recent, mean)
    if loss <= mean + sigmas * deviation:
        return ""
    return f"its loss {loss:.4g} is a spike (mean {mean:.4g}, deviation {deviation:.3g} over {len(recent)} steps)"
