"""Slots, and jobs that are asked to stop."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from arctic_hydra.errors import ConfigError
from arctic_hydra.launch import ranks
from arctic_hydra.launch.fork_server import ForkedRank
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.stopping import blocked_signals
from arctic_hydra.sweep import finish, pool, results
from arctic_hydra.sweep.directory import SweepJob, states
from arctic_hydra.sweep.pool import Slots
from tests.sweep.sweeps import sweep_of


@pytest.mark.parametrize(
    ("gpus", "count", "ranks", "expected"),
    [
        (8, None, ["auto"], (8, [["0"], ["1"], ["2"], ["3"], ["4"], ["5"], ["6"], ["7"]])),
        (8, 2, ["auto"], (2, [["0", "1", "2", "3"], ["4", "5", "6", "7"]])),
        (8, None, ["4", "2"], (2, [["0", "1", "2", "3"], ["4", "5", "6", "7"]])),
        (3, 2, ["1"], (2, [["0"], ["1"]])),
        (0, 3, ["auto"], (3, [])),
    ],
)
def test_slots_share_the_gpus(gpus, count, ranks, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pool, "count_gpus", lambda: gpus)
    slots = Slots.plan(count, ranks)
    assert (slots.count, slots.gpus) == expected


def test_slots_take_the_devices_that_are_visible_and_refuse_more(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setattr(pool, "count_gpus", lambda: 2)
    assert Slots.plan(None, ["auto"]).gpus == [["GPU-a"], ["GPU-b"]]
    with pytest.raises(ConfigError, match="hydra.launcher.slots: got 3 with 1 GPUs each, but this machine has 2"):
        Slots.plan(3, ["auto"])


def test_a_second_interrupt_leaves_jobs_stopped_and_not_failed(tmp_path):
    """As with a single run; the job's process is killed, which it otherwise would be by the kernel, for memory."""
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])

    def start(place):
        directory = sweep.jobs[0].directory
        directory.update_record(status="running")
        deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
        child.stdout.readline()
        threading.Thread(target=interrupt_twice).start()
        return pool.Started(child, directory)

    def interrupt_twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.1)

    reason = pool.Pool(sweep, Slots(1)).run([(job, start) for job in sweep.jobs])
    assert reason == "received SIGINT"
    assert [state for state, _ in states(sweep)] == ["stopped", "waiting"]
    assert finish.exit_code(results.rows(sweep)) == 75


@pytest.mark.parametrize("state", ["stopped", "pruned"])
def test_a_job_that_dies_when_asked_to_stop_has_not_failed(state, tmp_path):
    """By a signal, or by an observer that prunes what has logged a step."""
    sweep = sweep_of(tmp_path, ["seed=1"])
    dies = "trap 'exit 1' INT TERM; echo; while :; do sleep 0.01; done"

    def start(place):
        directory = sweep.jobs[0].directory
        directory.update_record(status="running")
        child = subprocess.Popen(["sh", "-c", dies], stdout=subprocess.PIPE)
        child.stdout.readline()
        if state == "stopped":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            (directory.path / "metrics.jsonl").write_text('{"step": 1}\n')
        return pool.Started(child, directory)

    sweep.jobs[0].directory.create()
    pool.Pool(sweep, Slots(1), lambda entry, rows: True).run([(sweep.jobs[0], start)])
    assert [found for found, _ in states(sweep)] == [state]


def test_a_job_whose_directory_is_cleared_keeps_its_log(tmp_path, monkeypatch):
    """As `fresh=true` does after the directory is locked."""
    sweep = sweep_of(tmp_path, ["seed=1"])
    directory = sweep.jobs[0].directory
    monkeypatch.setattr(sys, "executable", "/bin/echo")

    def start(share):
        directory.clear()
        directory.update_record(status="running")
        return pool.Started(ranks.open_ranks(directory, 1, None, {}, share), directory)

    pool.Pool(sweep, Slots(1)).run([(sweep.jobs[0], start)])
    assert "-m arctic_hydra.worker" in (directory.path / "logs" / pool.TERMINAL_LOG).read_text()


def test_a_job_that_ends_with_the_server_that_forked_it_says_so(tmp_path):
    sweep = sweep_of(tmp_path, ["seed=1"])
    child = subprocess.Popen(["sleep", "60"])

    def start(share):
        sweep.jobs[0].directory.update_record(status="running")
        ours, theirs = socket.socketpair()
        theirs.close()
        return pool.Started(ForkedRank(child.pid, os.pidfd_open(child.pid), ours), sweep.jobs[0].directory)

    try:
        pool.Pool(sweep, Slots(1)).run([(sweep.jobs[0], start)])
    finally:
        child.kill()
        child.wait()
    assert "the process that forks the jobs of the sweep has ended" in sweep.jobs[0].record()["error"]


def test_a_job_that_cannot_be_started_again_is_not_locked(tmp_path, monkeypatch):
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])

    class Reread:
        def data_digest(self):
            return "abc"

    def fail(directory):
        raise OSError("planted")

    monkeypatch.setattr(SweepJob, "reread", lambda entry: Reread())
    monkeypatch.setattr(RunDirectory, "clear_result", fail)
    work = [(job, pool.restarter(job)) for job in sweep.jobs]
    pool.Pool(sweep, Slots(1)).run(work)
    assert [(job.problem, job.directory.holder()) for job in sweep.jobs] == [("planted", None)] * 2


def test_an_error_of_the_sweep_lets_its_jobs_save_and_stop(tmp_path, monkeypatch):
    """Such as that of a full disk: without the sweep process its jobs would be killed."""
    sweep = sweep_of(tmp_path, ["seed=1"])
    saves = "import signal, sys; signal.sigwait([signal.SIGTERM]); open(sys.argv[1], 'w')"

    def start(place):
        directory = sweep.jobs[0].directory
        directory.update_record(status="running")
        with blocked_signals():
            return pool.Started(subprocess.Popen([sys.executable, "-c", saves, tmp_path / "saved"]), directory)

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    runs = pool.Pool(sweep, Slots(1))
    monkeypatch.setattr(type(sweep), "save", lambda self: full())  # right after the job has started
    with pytest.raises(OSError, match="No space left"):
        runs.run([(sweep.jobs[0], start)])
    assert (tmp_path / "saved").exists() and sweep.jobs[0].directory.record()["status"] == "stopped"


def test_more_ranks_than_gpus_are_a_problem_of_ranks(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pool, "count_gpus", lambda: 8)
    with pytest.raises(ConfigError, match="ranks: got 16, but this machine has 8 GPUs; pass ranks=8 or fewer"):
        Slots.plan(None, ["16"])
