"""Learning rates of runs that extend another one."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.errors import ConfigError
from arctic_hydra.scheduler.cosine import CosineScheduler
from arctic_hydra.scheduler.extended import ExtendSchedule, continue_schedule, warmup_steps

START, HORIZON = 10, 30


def rates(how: ExtendSchedule, peak: float = 2.0) -> list[float]:
    """Return the learning rates of the added steps, with a schedule that a checkpoint of step `START` was loaded into."""
    factory = CosineScheduler(warmup_steps=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    old = CosineScheduler(warmup_steps=2).create_scheduler(optimizer, START)
    for _ in range(START):
        optimizer.step()
        old.step()
    scheduler = factory.create_scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak), HORIZON)
    scheduler.load_state_dict(old.state_dict())
    found = continue_schedule(scheduler, factory, how, [peak], START, HORIZON)
    assert scheduler.get_last_lr() == found
    for _ in range(START, HORIZON - 1):
        scheduler.optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    return found


def test_the_added_steps_follow_the_chosen_continuation() -> None:
    factory = CosineScheduler(warmup_steps=4)
    assert rates(ExtendSchedule.constant) == [2.0] * 20
    assert rates(ExtendSchedule.rewarm) == [2 * factory.factor(step, 20) for step in range(1, 21)]
    assert rates(ExtendSchedule.stretch) == [2 * factory.factor(step, 30) for step in range(11, 31)]


def test_the_warmup_is_that_of_the_added_steps() -> None:
    factory = CosineScheduler(warmup_ratio=0.1)
    counts = {how.name: warmup_steps(factory, how, 100, 300) for how in ExtendSchedule}
    assert counts == {"rewarm": 20, "constant": 0, "stretch": 30}


def test_another_kind_of_scheduler_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    other = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(
        ConfigError, match="cannot continue the learning rates of a StepLR by CosineScheduler; expected"
    ):
        continue_schedule(other, CosineScheduler(), ExtendSchedule.rewarm, [1.0], 1, 2)
