"""The process that runs a sweep."""

from __future__ import annotations

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.errors import ConfigError
from arctic_hydra.sweep.controller import SweepController
from arctic_hydra.sweep.directory import Sweep
from tests.command import SMALL, run
from tests.sweep.sweeps import FINISH, POOL, QUICK, sweep_of, table


def test_an_objective_that_no_run_logs_ends_the_sweep_early(tmp_path):
    done = run(
        f"{POOL} {QUICK} objective=eval/los trainer.train_iters=200 trainer.eval_at_start=true seed=1,2,3",
        tmp_path,
        code=2,
    )
    assert (
        "objective: got eval/los, but the run logs no such metric; it logs epoch, eval/accuracy, eval/loss"
        in done.stderr
    )
    assert "job 2" not in done.stdout
    assert [row["status"] for row in table(tmp_path)][2:] == ["waiting"]


def test_an_objective_that_a_callback_logs_seldom_does_not_end_the_sweep(tmp_path):
    sweep = sweep_of(tmp_path, ["seed=1"])
    sweep.objective = "reward"
    controller = SweepController(sweep, None, {}, None)
    row = {"step": 1, "loss": 2.0}
    assert not controller.process_metrics(sweep.jobs[0], [row] * 20)
    with pytest.raises(ConfigError, match="objective: got reward, but the run logs no such metric; it logs loss"):
        controller.process_metrics(sweep.jobs[0], [row])
    controller = SweepController(sweep, None, {}, None)
    assert not controller.process_metrics(sweep.jobs[0], [row, {**row, "reward": 1.0}, *[row] * 40])


def test_the_command_that_repeats_a_job_is_the_last_one_that_was_given(shell_jobs, tmp_path):
    shell_jobs(FINISH)
    grid = ["-m", "hydra/launcher=local", *SMALL.split(), "tracking=[]", "seed=1"]
    assert main([*grid, "log.interval=3"]) == 0
    assert main([*grid, "log.interval=4"]) == 0
    [found] = (tmp_path / "outputs/default/sweeps").iterdir()
    assert "log.interval=4" in Sweep.load(found).jobs[0].overrides
