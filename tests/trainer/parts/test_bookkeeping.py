"""A step composed of the public pieces is counted and logged like any other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from arctic_hydra.errors import ConfigError
from arctic_hydra.tracking.none import NoTracker
from arctic_hydra.trainer.parts import bookkeeping
from arctic_hydra.trainer.sft import SFTTrainer
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer

DATA = documents([12] * 8, [4] * 8)


class TwoPasses(SFTTrainer):
    """Takes two optimizer steps per window: with half of the loss, then with the loss."""

    def step(self, window, counts):
        units = counts["supervised"]
        half = self.forward_backward(window, units, lambda batch: self.loss(batch) / 2, logged=False)
        self.optimizer_step()
        self.forward_backward(window, units)
        self.optimizer_step()
        self.step_result.metrics["half"] = half / window.num_supervised
        self.finish_step(window)


def _trained(folder, cls, stage):
    trainer = make_trainer(DATA, folder, stage=stage, gradient_accumulation_steps=2, train_iters=2)
    trainer.__class__ = cls
    rows = []
    trainer._record = rows.append
    trainer.train()
    return trainer.global_step, trainer.progress.skipped_steps, rows


def test_a_step_of_ones_own_is_counted_and_logged(tmp_path):
    for stage in (0, 2):
        [(_, _, plain)] = run_ranks(1, _trained, tmp_path, SFTTrainer, stage)
        [(steps, skipped, rows)] = run_ranks(1, _trained, tmp_path, TwoPasses, stage)
        assert (steps, skipped) == (2, 0)
        assert abs(2 * rows[0]["half"] - plain[0]["loss"]) < 1e-6, "the first pass sees the same weights"
        assert rows[0]["loss"] < plain[0]["loss"], "the second sees those after the first optimizer step"
        assert [row["lr"] for row in rows] == [row["lr"] for row in plain]


class Forgetful(SFTTrainer):
    """Leaves the learning rate where it is."""

    def step(self, window, counts):
        self.forward_backward(window, counts["units"])
        self.optimizer_step()


class Twice(SFTTrainer):
    """Adds up the gradients of two passes."""

    def step(self, window, counts):
        self.forward_backward(window, counts["units"])
        self.forward_backward(window, counts["units"])
        self.optimizer_step()
        self.finish_step(window)


def _refused(folder, cls):
    with pytest.raises(ConfigError) as caught:
        _trained(folder, cls, 0)
    return str(caught.value)


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Forgetful, "trainer: `step` of Forgetful advanced the learning-rate schedule 0 times, expected once; call"),
        (Twice, "trainer: `step` of Twice called `forward_backward` twice without `optimizer_step`, which would"),
    ],
)
def test_a_step_that_leaves_something_out_is_refused(cls, text, tmp_path):
    assert run_ranks(1, _refused, tmp_path, cls)[0].startswith(text)


def test_a_first_step_without_gradients_is_a_warning(caplog):
    trainer = SFTTrainer()
    trainer.tools = SimpleNamespace(state=SimpleNamespace(), loader=SimpleNamespace(steps=lambda epoch: 9))
    trainer.step_result.applied, trainer.step_result.grad_norm = True, 0.0
    for _ in range(2):
        trainer._advance(dict.fromkeys(("supervised", "units", "tokens", "padding"), 1))
    assert [record.getMessage()[:29] for record in caplog.records] == ["step 1: every gradient is 0, "]
    trainer.step_result.applied = False
    trainer._advance(dict.fromkeys(("supervised", "units", "tokens", "padding"), 1))
    assert caplog.records[1].getMessage() == (
        "step 3 was skipped: its `step` neither called `optimizer_step` nor set `step_result.applied`"
    )


@pytest.mark.parametrize("value", ["text", torch.ones(2), None])
def test_a_figure_of_a_step_that_is_no_number_is_named(value):
    with pytest.raises(ConfigError, match=r"trainer: `step_result.metrics\['v'\]` holds .*, expected a number or a"):
        bookkeeping._numbers({"v": value})
    assert bookkeeping._numbers({"v": torch.ones(1), "w": 2}) == {"v": 1.0, "w": 2.0}


class Failing(NoTracker):
    def log(self, step, metrics):
        raise OSError("the store is gone")


def _tracked(folder):
    trainer = make_trainer(DATA, folder, train_iters=2)
    trainer.tools.trackers = [Failing(), NoTracker()]
    trainer.train()
    return trainer.global_step, [type(tracker).__name__ for tracker in trainer.tools.trackers]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path):
    assert run_ranks(1, _tracked, tmp_path) == [(2, ["NoTracker"])]
