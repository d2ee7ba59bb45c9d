"""Starting ranks on one machine and on several, and signals that arrive meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest

from arctic_hydra.launch import ranks
from arctic_hydra.run_directory import RunDirectory, write_error
from arctic_hydra.stopping import SIGNALS
from tests.command import SMALL, losses, only_run, run, start, wait_for_step
from tests.launch.delayed_start import delay, wait_for_starts
from tests.launch.machines import ARGUMENTS, HOSTS
from tests.ranks import free_port


@pytest.mark.slow
def test_two_machines_equal_two_ranks_of_one(shell, tmp_path):
    """Started by hand, and by a hostfile; a signal stops a hostfile's run resumable, and the same command resumes."""
    (tmp_path / "hosts").write_text(HOSTS)
    run(f"{ARGUMENTS} name=one ranks=2", tmp_path)
    by_hand = f"{ARGUMENTS} name=hand nnodes=2 rendezvous=localhost:{free_port()}"
    other = start(f"{by_hand} node_rank=1", tmp_path)
    run(by_hand, tmp_path)
    assert "node 1 of 2 is done" in other.communicate(timeout=60)[0] and other.returncode == 0

    by_file = f"{ARGUMENTS} name=file hostfile=hosts"
    process = start(by_file, tmp_path, ARCTIC_HYDRA_SSH=str(shell))
    wait_for_step(tmp_path, 2, process, "file")
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 75 and "received SIGTERM" in output, output
    run(by_file, tmp_path, ARCTIC_HYDRA_SSH=str(shell))

    found = {name: losses(only_run(tmp_path, name)) for name in ("one", "hand", "file")}
    assert found["one"] == found["hand"] == found["file"]
    assert len({only_run(tmp_path, name).name for name in found}) == 1, "machines are no part of what a run is"


def test_an_unreachable_host_ends_the_others_at_once(tmp_path):
    (tmp_path / "remote").write_text(
        '#!/bin/sh\nhost=$1; shift\n[ $host = bad ] && { echo "no such host" >&2; exit 255; }\nexec sh -c "$*"\n'
    )
    (tmp_path / "remote").chmod(0o755)
    (tmp_path / "hosts").write_text("localhost slots=1\nbad slots=1\n")
    began = time.monotonic()
    done = run(f"{ARGUMENTS} hostfile=hosts", tmp_path, code=1, ARCTIC_HYDRA_SSH=str(tmp_path / "remote"))
    assert "error: hostfile: bad: exited with code 255 before the rendezvous completed" in done.stderr
    assert "no such host" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - began < 60, "15 minutes, before"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("count", "module"), [(1, "arctic_hydra.worker"), (2, "arctic_hydra.launch")])
def test_a_signal_stays_pending_while_the_interpreter_starts(count, module, number, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", delay(tmp_path, module, "os._exit(42)"), prepend=os.pathsep)
    child = ranks.open_ranks(RunDirectory(tmp_path), count, None, {})
    wait_for_starts(tmp_path, 1, child)
    child.send_signal(number)
    assert child.wait(60) == 42
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS), "of this process"


def test_a_signal_between_the_start_of_the_ranks_and_the_wait_for_them_is_passed_on(tmp_path, monkeypatch):
    def open_ranks(*arguments, **more):
        child = subprocess.Popen(["sleep", "60"])
        os.kill(os.getpid(), signal.SIGINT)
        return child

    monkeypatch.setattr(ranks, "open_ranks", open_ranks)
    signals: list[int] = []
    assert ranks.start_ranks(RunDirectory(tmp_path), 1, None, {}, signals=signals) == -signal.SIGINT
    assert signals == [signal.SIGINT]


def test_a_signal_that_was_blocked_before_keeps_the_ranks_from_starting(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "open_ranks", None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        signals: list[int] = []
        assert ranks.start_ranks(RunDirectory(tmp_path), 1, None, {}, signals=signals) == -signal.SIGTERM
        assert signals == [signal.SIGTERM]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= set(SIGNALS), "as it was"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("first", [0, 1], ids=["hostfile", "started by hand"])
def test_a_machine_that_died_is_the_cause_and_not_the_peers_that_lost_it(first, tmp_path, monkeypatch):
    """Machine 0 of a hostfile is another machine than this one, too."""
    directory = RunDirectory(tmp_path)
    write_error(tmp_path, 3, "RuntimeError", "Connection closed by peer", exit_code=1)
    directory.rendezvous_file.touch()
    directory.record_node_exit(1 - first, 1)
    monkeypatch.setattr(ranks, "GRACE_SECONDS", -9.8)
    ranks._wait_for_peers(directory, range(first, 2))
    assert f"node {first}: its agent disappeared" in directory.errors()[0]["message"]


def test_secrets_of_the_shell_are_not_taken_for_those_of_the_run(tmp_path):
    run(f"{SMALL} trainer.train_iters=1 tracking=[] checkpoint=[]", tmp_path, ARCTIC_HYDRA_SECRETS="abc")
