"""A stop between two log lines does not lose the sums of the current line."""

from __future__ import annotations

import shutil

import pytest

from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer

DATA = documents([20, 60, 10, 25, 12, 9, 31, 8] * 2, [1, 50, 7, 3, 7, 8, 20, 2] * 2)


def _lines(run_dir, settings):
    """Train from the existing checkpoint, with a log line every third step; return the metrics of each line."""
    trainer = make_trainer(DATA, run_dir, stage=2, **settings)
    checkpoint = DeepSpeedCheckpoint()
    checkpoint.bind(trainer.tools.state)
    checkpoint.load()
    trainer.tools.checkpoints.append(checkpoint)
    trainer.tools.log_interval = 3
    rows = []
    trainer._record = rows.append
    trainer.train()
    figures = ("step", "loss", "tokens", "tokens_per_second", "tflops")
    return [{name: row[name] for name in figures} for row in rows]


def test_the_line_after_a_resume_is_that_of_the_uninterrupted_run(tmp_path):
    one, two = {"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 1}
    expected = run_ranks(2, _lines, tmp_path / "straight", two)[0]
    assert [row["step"] for row in expected] == [3, 6, 8]
    first = run_ranks(2, _lines, tmp_path / "stopped", two | {"exit_iteration": 5})[0]
    assert [row["step"] for row in first] == [3]
    shutil.copytree(tmp_path / "stopped", tmp_path / "other")
    same, other = run_ranks(2, _lines, tmp_path / "stopped", two)[0], run_ranks(1, _lines, tmp_path / "other", one)[0]
    for row, changed, wanted in zip(same, other, expected[1:], strict=True):
        assert (row["step"], row["loss"], row["tokens"]) == (wanted["step"], wanted["loss"], wanted["tokens"])
        # Covers all of its steps, including those before the stop; metrics per second depend on timing.
        assert row["tflops"] / row["tokens_per_second"] == pytest.approx(wanted["tflops"] / wanted["tokens_per_second"])
        assert (changed["step"], changed["tokens"]) == (wanted["step"], wanted["tokens"])
        assert changed["loss"] == pytest.approx(wanted["loss"], abs=1e-6), "on a different number of ranks"


def _shares_at_a_stop(run_dir):
    trainer = make_trainer(DATA, run_dir)
    trainer.tools.loader.source_names = ("a", "b")
    window = next(iter(trainer.train_batches))
    window.supervised_by_source = lambda count: [3, 4]
    trainer._agree(window)
    before = dict(trainer._loop.totals.by_source)
    trainer.tools.stop.reason = "received SIGTERM"
    trainer._agree(window)
    return before, dict(trainer._loop.totals.by_source)


def test_a_step_that_a_stop_leaves_out_counts_for_no_source(tmp_path):
    [(before, after)] = run_ranks(1, _shares_at_a_stop, tmp_path)
    assert before == after == {"a": 3, "b": 4}
