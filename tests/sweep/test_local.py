"""Jobs of this machine."""

from __future__ import annotations

import signal
import socket
import subprocess

import pytest

from arctic_hydra.sweep import local, pool
from arctic_hydra.sweep.__main__ import main as look_after
from tests.sweep.sweeps import sweep_of


def test_cancelling_the_only_job_of_a_search_leaves_the_search_alone(tmp_path, capsys):
    """This process conducts the sweep; to cancel the whole of it would be to send SIGTERM to this process."""
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"], kind="search")
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
        assert "asked 1 job to stop" in capsys.readouterr().out
        assert look_after(["cancel", str(tmp_path)]) == 0
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().out
    assert "asked the sweep process" in said and "to stop" not in said, "the other job waits for this process alone"


def test_a_process_that_does_not_hold_the_lock_is_not_signalled(tmp_path, capsys):
    """sweep.json and the text of the lock are files: either may name any process."""
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    for job, child in zip(sweep.jobs, children, strict=True):
        job.directory.create()
        job.directory.update_record(status="running")
        job.submission = {"kind": "local", "pid": child.pid}
    held = sweep.jobs[0].directory
    held.lock()
    sweep.lock()
    sweep.save()
    (tmp_path / ".lock").write_text(f"process {children[0].pid} on {socket.gethostname()}, since 2026-01-01 00:00:00")
    try:
        assert look_after(["cancel", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert (
            f"job 0 was not signalled: process {children[0].pid} does not hold the lock of {tmp_path / 'run0'}" in said
        )
        assert (
            f"the sweep process was not signalled: process {children[0].pid} does not hold the lock of {tmp_path}"
            in said
        )
        assert "asked" not in said and [child.poll() for child in children] == [None, None]
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_sweep_of_another_machine_is_cancelled_there(tmp_path, capsys):
    sweep = sweep_of(tmp_path, ["seed=1"])
    sweep.lock()
    sweep.save()
    (tmp_path / ".lock").write_text("process 1 on elsewhere, since 2026-01-01 00:00:00")
    assert look_after(["cancel", str(tmp_path)]) == 2
    assert "the sweep runs on another machine (process 1 on elsewhere, since " in capsys.readouterr().err


@pytest.mark.parametrize(("slots", "expected"), [(None, 4), (1, 1), (8, 4)])
def test_a_retry_runs_no_more_jobs_at_a_time_than_the_sweep_did(slots, expected, tmp_path, monkeypatch):
    sweep, started = sweep_of(tmp_path, ["seed=1"]), []
    sweep.jobs[0].submission = {"kind": "local", "pid": 1, **({"slots": slots} if slots else {})}
    monkeypatch.setattr(pool, "restarter", lambda job: None)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.setattr(pool.Pool, "run", lambda self, work: started.append(self._slots.count))
    local.resubmit(sweep, sweep.jobs)
    assert started == [expected]
