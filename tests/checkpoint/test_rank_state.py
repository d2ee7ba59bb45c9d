"""State of a rank that DeepSpeed does not save."""

from __future__ import annotations

import pytest


def test_reseeding_depends_on_the_seed_of_the_rank_and_the_step(libraries) -> None:
    from arctic_hydra.checkpoint import rank_state

    torch = libraries.torch

    def draw(seed: int, step: int) -> float:
        torch.manual_seed(seed)
        rank_state.reseed(step)
        return float(torch.rand(()))

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(1, 2), draw(1, 3), draw(2, 2)}) == 3


def test_the_schedule_restores_the_learning_rate_of_each_group(libraries) -> None:
    from arctic_hydra.checkpoint import rank_state

    torch = libraries.torch

    def make() -> tuple[object, object]:
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.1)]
        optimizer = torch.optim.SGD(groups)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 0.5**done)

    optimizer, scheduler = make()
    optimizer.step()
    scheduler.step()
    fresh_optimizer, fresh_scheduler = make()
    rank_state.set_schedule_state(fresh_scheduler, rank_state.schedule_state(scheduler))
    assert [group["lr"] for group in fresh_optimizer.param_groups] == pytest.approx([0.5, 0.05])
    assert fresh_scheduler.last_epoch == 1


def test_sums_since_the_last_log_line_are_divided_among_other_ranks(libraries) -> None:
    from arctic_hydra.checkpoint.rank_state import redistribute_interval

    saved = [{"loss_sum": 3.0, "flops": 8.0, "steps": 4}, {"loss_sum": 1.0, "flops": 4.0, "steps": 4}]
    assert redistribute_interval(saved, 4) == {"loss_sum": 1.0, "flops": 3.0, "steps": 4}
    assert redistribute_interval([{}, {}], 4) == {}


def test_figures_since_the_last_log_line_are_those_of_all_ranks(libraries) -> None:
    from arctic_hydra.checkpoint.rank_state import redistribute_interval

    base = {"loss_sum": 1.0, "flops": 1.0}
    saved = [
        {**base, "figures": {"margin": 3.0}, "minima": {"low": 2.0}, "maxima": {"high": 5.0}},
        {**base, "figures": {"margin": 1.0}, "minima": {"low": -1.0}, "maxima": {"high": 4.0}},
    ]
    found = redistribute_interval(saved, 4)
    assert (found["figures"], found["minima"], found["maxima"]) == ({"margin": 1.0}, {"low": -1.0}, {"high": 5.0})
