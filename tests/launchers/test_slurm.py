"""`hydra/launcher=slurm`: what is refused, what is submitted, and waiting for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from arctic_hydra import distributed
from arctic_hydra.__main__ import main
from arctic_hydra.errors import ConfigError
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.sweep import slurm
from arctic_hydra.sweep.__main__ import main as look_after
from arctic_hydra.sweep.directory import SweepJob
from arctic_hydra.sweep.slurm import JobState
from tests.launchers.slurm_sweeps import DETACHED, SEARCH, SLURM, interrupt, sweeps
from tests.sweep.sweeps import sweep_of, trials


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "_GPUS_ELSEWHERE", None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "hydra.launcher.partitions=gpu",
            "hydra.launcher.partitions: there is no such key; did you mean hydra.launcher.partition?",
        ),
        (
            "hydra.launcher.nodes=two",
            "hydra.launcher.nodes: got 'two', expected a whole number",
        ),
        ("nnodes=2", "nnodes, hostfile: have no effect in SLURM; pass hydra.launcher.nodes=<machines>"),
        ("hydra.launcher._target_=os.system", "hydra.launcher._target_: got 'os.system', which is not allowed"),
        (
            "hydra.launcher.nodes=3 hydra.launcher.gpus_per_node=8 deepspeed.config={train_batch_size:8}",
            "deepspeed.config.train_batch_size: got 8, but micro_batch_size 1 x gradient_accumulation_steps 1 x ranks 24 = 24",
        ),
        (
            "-m hydra.launcher.exclude=n1,n2 seed=1,2",
            "hydra.launcher.exclude: got 'n1,n2', which Hydra reads as values of a sweep; pass "
            "'hydra.launcher.exclude=\"n1,n2\"' for one string with commas, or hydra.launcher.exclude=[n1,n2] for a list",
        ),
        ("-m hydra/launcher=slurm,local seed=1,2", "hydra/launcher: got 'slurm,local', expected one option"),
        ("hydra.launcher.max_array_size=-1", "hydra.launcher.max_array_size: got -1, expected 1 or more"),
        ("hydra.launcher.array_parallelism=0", "hydra.launcher.array_parallelism: got 0, expected 1 or more"),
        ("hydra.launcher.timeout_min=-5", "hydra.launcher.timeout_min: got -5, expected 0 or more"),
        ("hydra.launcher.max_requeues=-1", "hydra.launcher.max_requeues: got -1, expected 0 or more"),
        ("hydra.launcher.signal_delay_s=0", "hydra.launcher.signal_delay_s: got 0, expected 1 or more"),
        ("hydra.launcher.poll_seconds=0", "hydra.launcher.poll_seconds: got 0.0, expected more than 0"),
        (
            "hydra.launcher.timeout_min=2",
            "hydra.launcher.signal_delay_s: got 120, but hydra.launcher.timeout_min=2 limits a job to 120 s, so SLURM would signal it",
        ),
        ("task=evaluate", "task: got evaluate, which runs on this machine"),
        ("", "hydra/launcher: got slurm, but there is no sbatch and no srun on this machine; submit from a login node"),
    ],
)
def test_what_is_refused(arguments, text, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["hydra/launcher=slurm", *arguments.split()]) == 2
    assert text in capsys.readouterr().err
    assert not list(Path.cwd().iterdir()) or not arguments


@pytest.mark.parametrize("key", ["detach", "dry_run"])
def test_a_search_waits_for_its_results(key, capsys):
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.1,0.2)"]
    assert main(["-m", "hydra/launcher=slurm", f"hydra.launcher.{key}=true", *search]) == 2
    assert f"hydra.launcher.{key}: a search waits for results" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "status"), [("CANCELLED", "stopped"), ("OUT_OF_MEMORY", "failed")])
def test_a_cancelled_job_that_could_not_record_its_end_is_stopped(word, status, tmp_path, monkeypatch):
    """SLURM killed it before it was ready for signals, or long after them."""
    from hydra_plugins.arctic_hydra import slurm as launcher

    monkeypatch.setattr(launcher, "RECORD_LAG_SECONDS", 0)
    entry = SweepJob(0, [], str(tmp_path), "", {"kind": "slurm", "job_id": "7"})
    entry.directory.update_record(status="running")
    launcher.record_lost_endings([entry], {"7": JobState(word)})
    assert entry.directory.record()["status"] == status


@pytest.mark.parametrize("wrong", [False, True], ids=["pruned", "wrong objective"])
def test_a_queue_that_does_not_answer_when_a_job_is_to_be_cancelled_ends_no_search(
    wrong, tmp_path, monkeypatch, capsys
):
    from hydra_plugins.arctic_hydra.slurm import JobWatcher

    sweep = sweep_of(tmp_path, ["seed=1"])
    [entry] = sweep.jobs
    entry.submission = {"kind": "slurm", "job_id": "7"}
    entry.directory.create()
    entry.directory.update_record(status="stopped")
    (entry.directory.path / "metrics.jsonl").write_text('{"step": 1}\n')
    asked: list[SweepJob] = []

    def cancel(sweep, jobs):
        asked.extend(jobs)
        if len(asked) == 1:
            raise slurm.SlurmError("squeue did not respond within 60 s")

    def process_metrics(entry, rows):
        if wrong:
            raise ConfigError("objective: got x")
        return True

    states = {True: JobState("CANCELLED"), False: JobState("RUNNING")}
    monkeypatch.setattr(slurm, "cancel", cancel)
    monkeypatch.setattr(slurm, "query", lambda job_ids: {"7": states[len(asked) > 1]})
    watcher = JobWatcher(
        SimpleNamespace(sweep=sweep, over=False, process_metrics=process_metrics), {"poll_seconds": 0.01}
    )
    if wrong:
        with pytest.raises(ConfigError, match="objective: got x"):
            watcher.wait([entry])
        assert "the jobs were not cancelled: squeue did not respond" in capsys.readouterr().out
    else:
        assert watcher.wait([entry])
        assert (asked, entry.mark) == ([entry, entry], "pruned")


def test_a_run_that_another_sweep_has_in_the_queue_is_not_submitted_twice(queue, tmp_path, capsys):
    assert main([*DETACHED, "seed=1,2"]) == 0
    assert main([*DETACHED, "seed=3,2"]) == 0
    assert "job 1 is in the queue already, as 101_1" in capsys.readouterr().out
    assert queue.jobs == ["101_0", "101_1", "102"]
    assert [job.submission["job_id"] for job in sweeps(tmp_path)[1].jobs] == ["102", "101_1"]


def test_a_job_whose_directory_is_locked_does_not_stop_the_others(queue, tmp_path, capsys):
    assert main([*DETACHED, "seed=1"]) == 0
    [sweep] = sweeps(tmp_path)
    assert look_after(["cancel", str(sweep.path)]) == 0
    holder = RunDirectory(sweep.jobs[0].directory.path)
    holder.lock()
    assert main([*DETACHED, "seed=1,2"]) == 0
    assert "job 0 failed: " in (output := capsys.readouterr().out) and "is in use by another run" in output
    assert queue.jobs == ["102"]
    assert look_after(["status", str(sweeps(tmp_path)[1].path)]) == 1
    holder.release()
    assert main([*DETACHED, "seed=1,2"]) == 0
    assert queue.jobs == ["102", "103"]


def test_a_dry_run_omits_finished_jobs(queue, tmp_path, capsys):
    assert main([*DETACHED, "seed=1"]) == 0
    sweeps(tmp_path)[0].jobs[0].directory.update_record(status="finished")
    capsys.readouterr()
    assert main([*SLURM, "hydra.launcher.dry_run=true", "seed=1,2,3"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("# 1 of 3 jobs are finished already\n") and "--array=0-1%2" in output


def test_an_interrupt_ends_the_wait_for_a_search_and_the_same_command_waits_again(
    queue, tmp_path, while_waiting, capsys
):
    while_waiting(interrupt)
    assert main(SEARCH) == 75
    assert queue.jobs == ["101"] and [trial.state.name for trial in trials(tmp_path)] == ["RUNNING"]
    while_waiting(interrupt)
    assert main(SEARCH) == 75
    assert queue.jobs == ["101"] and [trial.state.name for trial in trials(tmp_path)] == ["RUNNING"]
    assert "job 0 is in the queue already, as 101" in capsys.readouterr().out


def test_cancelling_a_sweep_ends_the_search_that_waits_for_its_jobs(
    queue, tmp_path, while_waiting, capsys, monkeypatch
):
    while_waiting(lambda: look_after(["cancel", str(sweeps(tmp_path)[0].path)]))
    from hydra_plugins.arctic_hydra import slurm as launcher

    monkeypatch.setattr(launcher, "RECORD_LAG_SECONDS", 0.1)
    assert main(SEARCH) == 1  # the jobs of this queue neither save nor record their end
    output = capsys.readouterr().out
    assert "asked 1 job to stop" in output and "the sweep was stopped (cancelled); the same command" in output
    assert output.count(" submitted as ") == 1 and queue.jobs == []
    while_waiting(interrupt)
    assert main(SEARCH) == 75, "a new start is not cancelled any more"
    assert (queue.jobs, [trial.state.name for trial in trials(tmp_path)]) == (["102"], ["RUNNING"])
