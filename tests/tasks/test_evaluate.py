"""Where `task=evaluate` and `task=export` look for the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra.tasks.evaluate import checkpoint_root
from tests.composing import built


def test_checkpoints_are_found_in_the_output_dir_that_they_were_written_to() -> None:
    task_dir = Path("/runs/x/0123456789/task-evaluate")
    assert checkpoint_root(built(), task_dir) == Path("/runs/x/0123456789/checkpoints")
    elsewhere = built("checkpoint.deepspeed.output_dir=/large")
    assert checkpoint_root(elsewhere, task_dir) == Path("/large/x/0123456789/checkpoints")
    assert checkpoint_root(built("checkpoint=[]"), task_dir) == Path("/runs/x/0123456789/checkpoints")
