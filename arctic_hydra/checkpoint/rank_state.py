"""What a rank needs beyond DeepSpeed's files to go on exactly: random states, schedule, counter, figures to log.

Everything is a tensor, number, string, list or dict, so that it loads with `weights_only=True`.
DeepSpeed restores none of it: no random state at all, one `client_state` for all ranks below ZeRO-3.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy
import torch


def random_state() -> dict[str, Any]:
    """Return the states of the generators of python, numpy, torch and this rank's CUDA device."""
    version, internal, gauss_next = random.getstate()
    kind, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set every generator to what `random_state()` returned."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def reseed(step: int) -> None:
    """Seed every generator from the rank's own seed and `step`, so that a part of a run never repeats the draws before."""
    seed = (torch.initial_seed() + 1_000_003 * (step + 1)) % 2**32
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def schedule_state(scheduler: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """Return the scheduler's state and the learning rates in force: loading a scheduler alone sets no rate."""
    return {
        "scheduler": _plain(scheduler.state_dict()),
        "learning_rates": [float(group["lr"]) for group in scheduler.optimizer.param_groups],
    }


def set_schedule_state(scheduler: torch.optim.lr_scheduler.LRScheduler, state: dict[str, Any]) -> None:
    """Restore the scheduler and the learning rate of each parameter group."""
    scheduler.load_state_dict(state["scheduler"])
    for group, rate in zip(scheduler.optimizer.param_groups, state["learning_rates"], strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def redistribute_interval(intervals: list[dict[str, Any]], ranks: int) -> dict[str, Any]:
    """Return what each of `ranks` ranks goes on with of the figures since the last log line that other ranks saved.

    The loss and the FLOPs are sums over a rank's own batches; everything else is the same on all ranks.
    """
    own = {name: sum(figures[name] for figures in intervals) / ranks for name in ("loss_sum", "flops") if intervals[0]}
    return intervals[0] | own


def _plain(value: Any) -> Any:
    """Copy nested containers with numpy scalars as Python numbers, which a weights-only load accepts."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, numpy.generic) else value
