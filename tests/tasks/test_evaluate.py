"""Where `task=evaluate` and `task=export` look for the checkpoints of a run, and what they read there."""

from __future__ import annotations

import json
from pathlib import Path

from arctic_hydra.tasks.evaluate import checkpoint_root
from tests.command import SMALL, metrics, only_run, run
from tests.composing import built


def test_checkpoints_are_found_in_the_output_dir_that_they_were_written_to() -> None:
    task_dir = Path("/runs/x/0123456789/task-evaluate")
    assert checkpoint_root(built(), task_dir) == Path("/runs/x/0123456789/checkpoints")
    elsewhere = built("checkpoint.deepspeed.output_dir=/large")
    assert checkpoint_root(elsewhere, task_dir) == Path("/large/x/0123456789/checkpoints")
    assert checkpoint_root(built("checkpoint=[]"), task_dir) == Path("/runs/x/0123456789/checkpoints")


GROWING = '''
from arctic_hydra.component import component
from arctic_hydra.trainer.base import Trainer


@component(group="trainer", name="growing")
class Growing(Trainer):
    """Its loss depends on a state of its own."""

    not_additive = looks_ahead = mixes_documents = "it looks at no token"
    factor = 1.0

    def loss(self, batch):
        return self.factor * batch.num_supervised + 0 * self.tools.engine.module.get_input_embeddings().weight.sum()

    def step(self, window, counts):
        super().step(window, counts)
        self.factor += 1.0

    def state_dict(self):
        return {"factor": self.factor}

    def load_state_dict(self, state):
        self.factor = state["factor"]
'''


def test_an_evaluation_of_a_checkpoint_has_the_state_of_the_trainer(tmp_path):
    (tmp_path / "growing.py").write_text(GROWING)
    arguments = f"code=growing.py trainer=code:growing trainer.train_iters=2 tracking=[] checkpoint=[deepspeed] {SMALL}"
    run(f"{arguments} trainer.gradient_accumulation_steps=2", tmp_path)
    assert metrics(only_run(tmp_path))[-1]["eval/loss"] == 3.0
    run(f"{arguments} task=evaluate ranks=2", tmp_path)
    evaluated = json.loads((only_run(tmp_path) / "task-evaluate" / "result.json").read_text())
    assert evaluated["eval/loss"] == 3.0
