"""Scheduler factories: the learning-rate factor of each optimizer step, counted from 1, in closed form."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from arctic_hydra.component import Component
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class SchedulerFactory(Component):
    """Base of the scheduler factories."""

    @property
    def fixed_warmup_steps(self) -> int:
        """Warmup steps set in the config; 0 if their number depends on the horizon."""
        return int(self.__dict__.get("warmup_steps") or 0)

    @abstractmethod
    def warmup(self, horizon: int) -> int:
        """Return the number of warmup steps of a run of `horizon` optimizer steps."""

    @abstractmethod
    def create_scheduler(self, optimizer: torch.optim.Optimizer, horizon: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Return a scheduler that has the learning rate of optimizer step n after n-1 steps."""


@dataclass(kw_only=True)
class WarmupScheduler(SchedulerFactory):
    """Linear warmup from above 0 to the peak, then the curve of the subclass, which would end one step after the horizon.

    Step n of `horizon` (n from 1) has the factor `rise(n / warmup)` while n <= warmup, else `curve((n - peak) / (horizon + 1
    - peak))`, where step `peak` = max(1, warmup) has the peak. No step is wasted: a curve that falls to 0 is above 0 from the
    first step to the last. With warmup these are transformers' schedules of horizon + 1 steps without their step 0, whose
    rate is 0; without warmup, those of `horizon` steps. That of `wsd` is theirs with decay_type=linear.
    """

    warmup_ratio: HumanFloat = number(0.1, minimum=0, maximum=1)
    """Warmup as a share of the training steps, rounded up to whole steps; ignored if `warmup_steps` is set."""
    warmup_steps: HumanInt | None = integer(None, minimum=0, maximum=10**9)
    """Optimizer steps of the warmup."""

    @property
    def fixed_warmup_steps(self) -> int:
        """Warmup steps set in the config; 0 if their number depends on the horizon."""
        return self.warmup_steps or 0

    def warmup(self, horizon: int) -> int:
        """Return the number of warmup steps; raises ConfigError if the run has fewer steps."""
        steps = self.warmup_steps
        if steps is None:  # the decimal that was written, not its nearest float: 7% of 100 steps are 7
            steps = math.ceil(Fraction(repr(float(self.warmup_ratio))) * horizon)
        if steps > horizon:
            raise ConfigError(
                f"scheduler.warmup_steps: got {steps}, but the run has {horizon} optimizer steps; lower it, or train longer"
            )
        return steps

    def rise(self, progress: float) -> float:
        """Return the factor of the peak learning rate at `progress` in (0, 1] of the warmup."""
        return progress

    @abstractmethod
    def curve(self, progress: float) -> float:
        """Return the factor of the peak learning rate at `progress`: 0 at the peak, 1 at the step after the horizon."""

    def factor(self, step: int, horizon: int) -> float:
        """Return the factor of the peak learning rate at optimizer step `step`, from 1; constant after the horizon."""
        warmup = self.warmup(horizon)
        if step <= warmup:
            return self.rise(step / warmup)
        peak = max(1, warmup)
        return self.curve(min(1.0, (step - peak) / (horizon + 1 - peak)))

    def create_scheduler(self, optimizer: torch.optim.Optimizer, horizon: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Return a LambdaLR over `factor`; raises ConfigError for a curve that is negative or not finite."""
        import torch

        for done in range(0, horizon, max(1, horizon // 1000)):  # all of a short run, a sample of a long one
            if not 0 <= (factor := self.factor(done + 1, horizon)) < math.inf:
                raise ConfigError(
                    f"scheduler: {type(self).__name__} has the factor {factor} at step {done + 1} of {horizon}, expected 0 or more; "
                    "correct its `curve`"
                )
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: self.factor(done + 1, horizon))
