"""Resharding: a checkpoint loads on another number of ranks."""

from __future__ import annotations

from typing import Any

import pytest

ROOT = "checkpoints"


@pytest.mark.parametrize(("zero", "bf16"), [(0, False), (1, False), (2, False), (3, False), (2, True), (3, True)])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_weights_moments_and_learning_rates_survive_a_change_of_ranks(
    zero, before, after, in_ranks, bf16, lab, tmp_path
):
    """Weights, moments and learning rates survive 1 -> 2 -> 1 ranks bit for bit; RNG states are reseeded."""

    def first(rank: int) -> Any:
        state = lab.start(tmp_path, rank, zero=zero, world_size=before, bf16=bf16)
        lab.train(state, 2)
        lab.checkpoint(state).save()
        return lab.digest(state)

    def other(rank: int) -> Any:
        state = lab.start(tmp_path, rank, zero=zero, world_size=after, bf16=bf16, seed=9)
        lab.checkpoint(state).load()
        state.progress.global_step += 1  # another step name, without training in between
        state.engine.global_steps += 1
        lab.checkpoint(state).save()
        return lab.draw(5)

    def back(rank: int) -> Any:
        state = lab.start(tmp_path, rank, zero=zero, world_size=before, bf16=bf16, seed=9)
        lab.checkpoint(state).load()
        return lab.digest(state)

    expected = in_ranks(before, first)
    draws = in_ranks(after, other)
    assert len({tuple(drawn) for drawn in draws}) == after
    for ours, wanted in zip(in_ranks(before, back), expected, strict=True):
        for name in ("weights", "optimizer", "rates"):
            assert ours[name] == wanted[name], name
    assert not list((tmp_path / ROOT).glob(".tmp-*"))
