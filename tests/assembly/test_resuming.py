"""Where a run goes on: without a checkpoint from the start, after an extended run only with more steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from arctic_hydra.assembly.resuming import resume
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError


def test_a_run_without_a_checkpoint_drops_what_an_earlier_start_logged(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n')
    state = SimpleNamespace(scheduler=None, extended_at=0, logs=[log], world=World())
    assert resume(SimpleNamespace(checkpoint={}), state) is None and not log.exists()


def test_an_extended_run_without_further_steps_is_refused():
    run = SimpleNamespace(
        checkpoint={}, trainer=SimpleNamespace(training_horizon=4), extend="outputs/a/b", extend_schedule=None
    )
    state = SimpleNamespace(scheduler=None, extended_at=4, logs=[], world=World())
    with pytest.raises(
        ConfigError, match="extend: outputs/a/b has 4 steps, and this run 4 in all; raise trainer.epochs"
    ):
        resume(run, state)
