"""The learning rate of a run that extends another one."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from arctic_hydra.errors import ConfigError
from arctic_hydra.scheduler.base import SchedulerFactory, WarmupScheduler

if TYPE_CHECKING:
    import torch


class ExtendSchedule(Enum):
    """The learning rate of the steps that a run adds to the one that it extends.

    rewarm: warmup and curve restart over the added steps; constant: the peak learning rate; stretch: the curve that a run of
    all steps has had from its start.
    """

    rewarm = "rewarm"
    constant = "constant"
    stretch = "stretch"


def warmup_steps(factory: SchedulerFactory, how: ExtendSchedule, start: int, horizon: int) -> int:
    """Return the number of warmup steps in a run of `horizon` steps that extends one of `start` steps."""
    if how is ExtendSchedule.constant:
        return 0
    return factory.warmup(horizon - start if how is ExtendSchedule.rewarm else horizon)


def continue_schedule(
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    factory: SchedulerFactory,
    how: ExtendSchedule,
    peaks: list[float],
    start: int,
    horizon: int,
) -> list[float]:
    """Replace the factors of a loaded scheduler by those of a run that continues from step `start` to `horizon`.

    `peaks` holds the peak learning rate of each parameter group. Returns the learning rate of each group in the next step.
    Raises ConfigError unless the scheduler is the one that a `WarmupScheduler` creates.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if not isinstance(factory, WarmupScheduler) or not isinstance(scheduler, LambdaLR):
        raise ConfigError(
            f"extend: cannot continue the learning rates of a {type(scheduler).__name__} by {type(factory).__name__}; expected a "
            "schedule derived from WarmupScheduler, as the built-in ones are; pass scheduler=cosine"
        )
    factor = _factor(factory, how, start, horizon)
    scheduler.base_lrs = list(peaks)
    scheduler.lr_lambdas = [factor] * len(peaks)
    rates = [peak * factor(scheduler.last_epoch) for peak in peaks]
    scheduler._last_lr = list(rates)
    return rates


def _factor(factory: WarmupScheduler, how: ExtendSchedule, start: int, horizon: int) -> Callable[[int], float]:
    if how is ExtendSchedule.constant:
        return lambda done: 1.0
    if how is ExtendSchedule.rewarm:
        return lambda done: factory.factor(done + 1 - start, horizon - start)
    return lambda done: factory.factor(done + 1, horizon)
