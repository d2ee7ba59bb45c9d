"""The counters of a run survive a checkpoint."""

from __future__ import annotations

import pytest

from arctic_hydra.progress import Progress


def test_counters_survive_a_state_dict():
    progress = Progress(global_step=3, tokens=2**40, skipped_steps=1)
    state = progress.state_dict()
    assert all(type(value) is int for value in state.values())
    other = Progress(epoch=7)
    other.load_state_dict(state | {"a counter of a later version": 1})
    assert other == progress


def test_a_missing_counter_is_an_error():
    state = Progress().state_dict()
    del state["tokens"]
    with pytest.raises(KeyError, match="tokens"):
        Progress().load_state_dict(state)
