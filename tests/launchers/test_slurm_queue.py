"""`hydra/launcher=slurm` and what is in the queue already: lost answers, other sweeps, cancelling, interrupts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from arctic_hydra import run_directory
from arctic_hydra.__main__ import main
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.sweep.__main__ import WATCH_SECONDS
from arctic_hydra.sweep.__main__ import main as look_after
from arctic_hydra.sweep.directory import Sweep, SweepJob
from arctic_hydra.sweep.slurm import JobState
from tests.command import ROOT, SMALLEST
from tests.launchers.queue import Queue
from tests.sweep.test_search import trials

POLL_SECONDS = 0.0625
SLURM = f"-m hydra/launcher=slurm hydra.launcher.poll_seconds={POLL_SECONDS} {SMALLEST} tracking=[]".split()
DETACHED = [*SLURM, "hydra.launcher.detach=true"]
SEARCH = [*SLURM, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "seed=range(1,9)"]


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_directory, "LOCK_GRACE_SECONDS", 0.1)
    found = Queue(tmp_path / "queue")
    monkeypatch.setenv("PATH", found.variables["PATH"])
    return found


@pytest.fixture
def while_waiting(monkeypatch):
    """Have something happen once, while the launcher sleeps between two looks at the queue."""

    def arrange(event: Callable[[], object]) -> None:
        events, sleep = [event], time.sleep

        def sleep_or_happen(seconds: float) -> None:
            if seconds == POLL_SECONDS and events:
                events.pop()()
            sleep(seconds)

        monkeypatch.setattr(time, "sleep", sleep_or_happen)

    return arrange


def sweeps(folder) -> list[Sweep]:
    found = sorted((folder / "outputs/default/sweeps").iterdir(), key=lambda path: path.stat().st_mtime)
    return [Sweep.load(path) for path in found]


@pytest.mark.parametrize(("word", "status"), [("CANCELLED", "stopped"), ("OUT_OF_MEMORY", "failed")])
def test_a_cancelled_job_that_could_not_write_down_its_end_is_stopped(word, status, tmp_path, monkeypatch):
    """SLURM killed it before it was ready for signals, or long after them."""
    from hydra_plugins.arctic_hydra import slurm

    monkeypatch.setattr(slurm, "SETTLE_SECONDS", 0)
    entry = SweepJob(0, [], str(tmp_path), "", {"kind": "slurm", "job_id": "7"})
    entry.directory.update_record(status="running")
    slurm.settle([entry], {"7": JobState(word)})
    assert entry.directory.record()["status"] == status


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_job_whose_number_never_arrived_is_found_and_submitted_anew(queue, tmp_path, capsys):
    queue.lose_answer(102)
    command = [*DETACHED, "hydra.launcher.max_array_size=2", "seed=1,2,3,4,5"]
    assert main(command) == 1
    [sweep] = sweeps(tmp_path)
    assert [job.submission and job.submission["job_id"] for job in sweep.jobs] == ["101_0", "101_1", None, None, None]
    assert queue.jobs == ["101_0", "101_1", "102_0", "102_1"]
    assert "Socket timed out" in capsys.readouterr().err
    assert main(command) == 0
    assert "102 was being submitted when this sweep was killed: cancelled" in capsys.readouterr().out
    assert queue.jobs == ["101_0", "101_1", "103_0", "103_1", "104"]
    [sweep] = sweeps(tmp_path)
    (sweep.path / "sweep.json").write_text((sweep.path / "sweep.json").read_text().replace('"103_0"', '"99_0"'))
    assert main(command) == 0  # the run's own record knows better
    assert len(queue.jobs) == 5


def test_a_retry_finds_and_writes_down_its_jobs_too(queue, tmp_path, capsys):
    assert main([*DETACHED, "hydra.launcher.max_array_size=1", "seed=1,2"]) == 0
    [sweep] = sweeps(tmp_path)
    assert look_after(["cancel", str(sweep.path)]) == 0
    queue.lose_answer(104)
    assert look_after(["retry", str(sweep.path)]) == 1
    assert "not submitted again: job 1" in capsys.readouterr().err
    assert [job.submission["job_id"] for job in sweeps(tmp_path)[0].jobs] == ["103", "102"]
    assert look_after(["retry", str(sweep.path)]) == 75
    assert (queue.jobs, [job.submission["job_id"] for job in sweeps(tmp_path)[0].jobs]) == (
        ["103", "105"],
        ["103", "105"],
    )


def test_a_retry_takes_the_data_as_it_is_now_and_a_job_that_cannot_run_again_fails_alone(queue, tmp_path, capsys):
    row = (ROOT / "arctic_hydra/assets/chat/train_sft.jsonl").read_text().splitlines()[0]
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("{\n")
    command = [*DETACHED, "data=json", "data.sources.json.path=a.jsonl,b.jsonl"]
    assert main(command) == 0
    [sweep] = sweeps(tmp_path)
    assert look_after(["cancel", str(sweep.path)]) == 0
    (tmp_path / "a.jsonl").write_text(f"{row}\n")
    (tmp_path / "b.jsonl").unlink()
    capsys.readouterr()
    assert look_after(["retry", str(sweep.path)]) == 1
    assert "job 1 failed: data.sources.json.path: " in capsys.readouterr().out
    assert queue.jobs == ["102"]
    assert look_after(["cancel", str(sweep.path), "--job", "0"]) == 0  # this queue's jobs do not end otherwise
    sweep.jobs[0].directory.update_record(status="finished")
    (tmp_path / "b.jsonl").write_text(f"{row}\n")
    assert main(command) == 0
    assert "job 0 is finished already" in capsys.readouterr().out and queue.jobs == ["103"]


def test_a_run_that_another_sweep_has_in_the_queue_is_not_submitted_twice(queue, tmp_path, capsys):
    assert main([*DETACHED, "seed=1,2"]) == 0
    assert main([*DETACHED, "seed=3,2"]) == 0
    assert "job 1 is in the queue already, as 101_1" in capsys.readouterr().out
    assert queue.jobs == ["101_0", "101_1", "102"]
    assert [job.submission["job_id"] for job in sweeps(tmp_path)[1].jobs] == ["102", "101_1"]


def test_a_job_that_cannot_be_prepared_leaves_the_others_alone(queue, tmp_path, capsys):
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


def test_what_the_files_know_is_shown_while_slurm_does_not_answer(queue, tmp_path, capsys):
    """A finished job without the objective is a failed one, whoever looks."""
    assert main([*DETACHED, "objective=loss", "seed=1,2,3"]) == 0
    [sweep] = sweeps(tmp_path)
    for job, row in zip(sweep.jobs, ({"step": 1, "loss": 2.0}, {"step": 1, "eval/loss": 2.0}), strict=False):
        (job.directory.path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        job.directory.update_record(status="finished")
    queue.go_away()
    for command in ("status", "summary"):
        capsys.readouterr()
        assert look_after([command, str(sweep.path)]) == 1
        output = capsys.readouterr().out
        assert [line.split()[1] for line in output.splitlines() if line.startswith("  ")][:3] == [
            "finished",
            "failed",
            "unknown",
        ]
        assert "job 1 failed: objective: got loss, but the run logged no such metric; it logged eval/loss" in output
        assert (
            "job 2 unknown: running by its own record; the queue could not be asked: squeue: slurm_load_jobs" in output
        )
        assert "best: job 0" in output


def test_a_watch_goes_on_while_slurm_does_not_answer(queue, tmp_path, capsys, monkeypatch):
    assert main([*DETACHED, "seed=1"]) == 0
    [sweep] = sweeps(tmp_path)
    events = [queue.go_away, queue.come_back, lambda: sweep.jobs[0].directory.update_record(status="finished")]
    monkeypatch.setattr(time, "sleep", lambda seconds: events.pop(0)() if seconds == WATCH_SECONDS else None)
    capsys.readouterr()
    look_after(["status", str(sweep.path), "--watch"])
    told = [line.split()[2].rstrip(":") for line in capsys.readouterr().out.splitlines() if line.startswith("job 0 ")]
    assert told[:4] == ["running", "unknown", "running", "finished"] and events == []


def test_jobs_without_a_log_are_named_and_do_not_hide_those_of_others(queue, tmp_path, capsys):
    """SLURM makes the file as the job begins: one that waits, or was cancelled while it waited, has none."""
    assert main([*DETACHED, "seed=1,2"]) == 0
    [sweep] = sweeps(tmp_path)
    assert look_after(["cancel", str(sweep.path)]) == 0
    (sweep.path / "slurm" / "101_1_0_log.out").write_text("first\nlast\n")
    capsys.readouterr()
    assert look_after(["logs", str(sweep.path), "--lines", "1"]) == 0
    first, second, line = capsys.readouterr().out.splitlines()
    assert first == "job 0 has no log: it has not begun"
    assert second.startswith("job 1: ") and second.endswith("101_1_0_log.out") and line == "  last"


def test_a_dry_run_leaves_out_what_is_finished(queue, tmp_path, capsys):
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


def test_jobs_cancelled_before_they_started_are_stopped(queue, tmp_path, capsys):
    """Not died: nothing of them was lost, and the sweep's exit code says that the same command goes on."""
    assert main([*DETACHED, "seed=1,2"]) == 0
    [sweep] = sweeps(tmp_path)
    queue.hold()
    capsys.readouterr()
    assert look_after(["cancel", str(sweep.path)]) == 0
    assert look_after(["status", str(sweep.path)]) == 75
    assert capsys.readouterr().out.count(" stopped: GONE (SLURM does not know it: cancelled before it started") == 2
    assert main([*DETACHED, "seed=1,2"]) == 0 and queue.jobs == ["102_0", "102_1"]


def test_cancelling_a_sweep_ends_the_search_that_waits_for_its_jobs(
    queue, tmp_path, while_waiting, capsys, monkeypatch
):
    while_waiting(lambda: look_after(["cancel", str(sweeps(tmp_path)[0].path)]))
    from hydra_plugins.arctic_hydra import slurm

    monkeypatch.setattr(slurm, "SETTLE_SECONDS", 0.1)
    assert main(SEARCH) == 1  # this queue's jobs save nothing and end without a word
    output = capsys.readouterr().out
    assert "asked 1 job(s) to stop" in output and "the sweep was stopped (cancelled); the same command" in output
    assert output.count(" submitted as ") == 1 and queue.jobs == []
    while_waiting(interrupt)
    assert main(SEARCH) == 75, "a new start is not cancelled any more"
    assert (queue.jobs, [trial.state.name for trial in trials(tmp_path)]) == (["102"], ["RUNNING"])
