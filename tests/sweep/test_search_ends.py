"""What a search makes of the ends that its jobs come to: the real pool and study, with a line of shell in place of the ranks."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.sweep import pool
from arctic_hydra.sweep.__main__ import main as look_after
from arctic_hydra.sweep.directory import Sweep
from tests.command import SMALL
from tests.sweep.test_parts import sweep_of
from tests.sweep.test_search import trials

FINISH = (
    'echo \'{"step": 1, "loss": 2.0, "eval/loss": 3.0}\' > metrics.jsonl; '
    'echo \'{"status": "finished", "step": 1, "objective": 3.0}\' > result.json'
)
RAISE = 'mkdir -p logs; echo \'{"time": 5.0, "rank": 0, "message": "no", "expected": true, "problems": ["no"], "exit_code": 1}\''
RAISE = f"{RAISE} > logs/error-rank0.json; exit 1"
SEARCH = f"-m hydra/sweeper=optuna hydra/launcher=local hydra.launcher.slots=2 {SMALL} tracking=[]".split()


@pytest.fixture
def shell(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Have the jobs that start from now on run these lines of shell, the last one for all further; return the seeds of those."""
    monkeypatch.chdir(tmp_path)

    def use(*lines: str) -> list[str]:
        started: list[str] = []

        def starter(job):
            def start(place):
                lock = job.write_unless_finished()
                if lock is None:
                    return None
                line = lines[min(len(started), len(lines) - 1)]
                started.append(next(item for item in job.overrides if item.startswith("seed=")))
                child = subprocess.Popen(["sh", "-c", line], cwd=job.directory.path, pass_fds=[lock])
                return pool.Started(child, job.directory)

            return start

        monkeypatch.setattr(pool, "starter", starter)
        return started

    return use


def names(folder: Path) -> list[str]:
    return [trial.state.name for trial in trials(folder)]


def test_trials_that_were_stopped_or_killed_run_again_and_those_that_raised_do_not(shell, tmp_path, capsys):
    search = [*SEARCH, "hydra.sweeper.sampler=grid", "hydra.sweeper.n_jobs=4", "seed=1,2,3,4"]
    first = shell("kill -TERM $$", "kill -KILL $$", RAISE, FINISH)
    assert main(search) == 1
    assert names(tmp_path) == ["RUNNING", "RUNNING", "FAIL", "COMPLETE"]
    again = shell(FINISH)
    assert main(search) == 1  # the one that raised
    assert names(tmp_path) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert again == first[:2]
    assert "stopped" not in capsys.readouterr().out.rpartition("objective")[2]


def test_trials_that_are_one_and_the_same_run_are_pruned_together(shell, tmp_path):
    """`log.interval` is no part of what a run is; a later trial of a pruned run is pruned like it, and not run."""
    bad = 'echo \'{"step": 1, "eval/loss": 9.0}\' > metrics.jsonl; exec sleep 60'
    started = shell(FINISH.replace("; echo", "; sleep 0.5; echo"), bad)  # its evaluation is seen while it runs
    pruner = [
        "hydra.sweeper.pruner=median",
        "hydra.sweeper.pruner_kwargs={n_startup_trials:1}",
        "trainer.eval_frequency=1",
    ]
    space = ["seed=1,2", "log.interval=1,2,3", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_jobs=2"]
    assert main([*SEARCH, *pruner, *space]) == 0
    assert names(tmp_path) == ["COMPLETE"] * 3 + ["PRUNED"] * 3
    assert started == ["seed=1", "seed=2"]


def test_a_file_edited_during_a_search_changes_nothing(shell, tmp_path):
    option = tmp_path / "mine" / "experiment" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# @package _global_\ntrainer: {max_minutes: 30}\n")
    shell(f"echo 'there: {{}}' > {option}; {FINISH}")
    space = ["seed=range(1,1000)", "hydra.sweeper.n_jobs=1", "hydra.sweeper.n_trials=3"]
    assert main([*SEARCH, "--config-dir", "mine", "experiment=mine", *space]) == 0
    runs = [json.loads(path.read_text())["config"] for path in tmp_path.glob("outputs/default/*/run.json")]
    assert [run["trainer"]["max_minutes"] for run in runs] == [30] * 3


def test_the_command_that_repeats_a_job_is_the_last_one_that_was_given(shell, tmp_path):
    shell(FINISH)
    grid = ["-m", "hydra/launcher=local", *SMALL.split(), "tracking=[]", "seed=1"]
    assert main([*grid, "log.interval=3"]) == 0
    assert main([*grid, "log.interval=4"]) == 0
    [found] = (tmp_path / "outputs/default/sweeps").iterdir()
    assert "log.interval=4" in Sweep.load(found).jobs[0].overrides


def test_cancelling_the_only_job_of_a_search_leaves_the_search_alone(tmp_path, capsys):
    """This process conducts the sweep; to cancel the whole of it would be to send SIGTERM to this process."""
    sweep = sweep_of(tmp_path, ["seed=1"], kind="search")
    sweep.lock()
    directory = sweep.jobs[0].directory
    directory.create()
    lock = directory.lock()
    directory.update_record(status="running")
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    sweep.jobs[0].submission = {"kind": "local", "pid": child.pid}
    sweep.save()
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        assert look_after(["cancel", str(tmp_path), "--job", "0"]) == 0
        assert (child.wait(10), seen) == (-signal.SIGTERM, [])
        assert look_after(["cancel", str(tmp_path)]) == 0
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "asked the process that conducts the sweep" in capsys.readouterr().out
