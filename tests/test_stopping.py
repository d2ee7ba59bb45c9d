"""Signals that come while processes start: none is lost, none ends a run that could not answer yet, and all are stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra_plugins.arctic_hydra._slurm_job import RunJob

from arctic_hydra import job, launch
from arctic_hydra.record import RunDirectory
from arctic_hydra.stopping import SIGNALS
from arctic_hydra.worker import write_error
from tests.command import SMALLEST, environment, start
from tests.launchers.queue import Queue

SITE = """\
import os, pathlib, signal, sys, time
if sys.orig_argv[3:4] == [{module!r}]:
    pathlib.Path({folder!r}, f"started-{{os.getpid()}}").touch()
    end = time.monotonic() + 60
    while not signal.sigpending() and time.monotonic() < end:
        time.sleep(0.01)
    {then}
"""
"""A sitecustomize: the interpreter of a module waits for a signal before it is through with `site`."""


def delay(folder: Path, module: str, then: str = "pass") -> str:
    """Have the interpreters of `python -u -m module` wait for a signal; return the folder to put on PYTHONPATH."""
    (folder / "sitecustomize.py").write_text(SITE.format(module=module, folder=str(folder), then=then))
    return str(folder)


def wait_for_starts(folder: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until `count` interpreters wait for a signal."""
    end = time.monotonic() + 60
    while len(list(folder.glob("started-*"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{count} interpreters did not start"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("ranks", "module"), [(1, "arctic_hydra.worker"), (2, "arctic_hydra.launch")])
def test_a_signal_stays_pending_while_the_interpreter_starts(ranks, module, number, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", delay(tmp_path, module, "os._exit(42)"), prepend=os.pathsep)
    child = launch.open_ranks(RunDirectory(tmp_path), ranks, None, {})
    wait_for_starts(tmp_path, 1, child)
    child.send_signal(number)
    assert child.wait(60) == 42
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS), "of this process"


def test_a_signal_between_the_start_of_the_ranks_and_the_wait_for_them_is_passed_on(tmp_path, monkeypatch):
    def open_ranks(*arguments, **more):
        child = subprocess.Popen(["sleep", "60"])
        os.kill(os.getpid(), signal.SIGINT)
        return child

    monkeypatch.setattr(launch, "open_ranks", open_ranks)
    signals: list[int] = []
    assert launch.start_ranks(RunDirectory(tmp_path), 1, None, {}, signals=signals) == -signal.SIGINT
    assert signals == [signal.SIGINT]


def test_a_signal_that_was_blocked_before_keeps_the_ranks_from_starting(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "open_ranks", None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        signals: list[int] = []
        assert launch.start_ranks(RunDirectory(tmp_path), 1, None, {}, signals=signals) == -signal.SIGTERM
        assert signals == [signal.SIGTERM]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= set(SIGNALS), "as it was"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(
    ("code", "kind", "asked", "status"),
    [
        (1, None, True, "stopped"),
        (-signal.SIGKILL, None, True, "stopped"),
        (-signal.SIGINT, None, False, "stopped"),
        (1, "KeyboardInterrupt", True, "stopped"),
        (1, "RankDied", True, "stopped"),
        (1, "ValueError", True, "failed"),
        (1, None, False, "failed"),
        (-signal.SIGKILL, None, False, "failed"),
        (1, "KeyboardInterrupt", False, "failed"),
        (1, "RankDied", False, "failed"),
    ],
)
def test_what_ends_after_a_request_to_stop_is_a_stop_unless_it_reports_an_error(code, kind, asked, status, tmp_path):
    directory = RunDirectory(tmp_path)
    if kind:
        write_error(tmp_path, 1, kind, f"rank 1: {kind}")
        write_error(tmp_path, 0, "RuntimeError", "Connection closed by peer", exit_code=1)
    ending = job.conclude(directory, code, asked_to_stop=asked)
    assert (ending.status, ending.exit_code) == (status, 75 if status == "stopped" else 1)
    assert directory.record()["status"] == status
    assert ("the same command starts again" in ending.details) == (status == "stopped")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 255)], ids=["cancelled", "requeued"]
)
def test_a_signal_of_slurm_s_before_the_job_is_loaded_stops_it(number, code, tmp_path):
    """submitit waits for the file of the job, with no handler yet; SIGUSR2 puts the job back into the queue."""
    from submitit.core.utils import DelayedSubmission

    queue, directory = Queue(tmp_path / "queue"), RunDirectory(tmp_path / "run")
    directory.create()
    variables = {**queue.variables, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "101", "SLURM_JOB_NODELIST": "n1"}
    command = [sys.executable, "-u", "-m", "hydra_plugins.arctic_hydra._slurm_start", str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    while "Loading pickle" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    submission = DelayedSubmission(RunJob(str(directory.path), 1, 1))
    submission.set_timeout(60, 1)
    submission.dump(tmp_path / "101_submitted.pkl")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert directory.record()["status"] == "stopped"
    assert not list((directory.path / "logs").glob("*")), "no rank was started"
    assert DelayedSubmission.load(tmp_path / "101_submitted.pkl").function.requeues == (number == signal.SIGUSR2)


def test_interrupts_of_an_interpreter_that_ends_leave_the_exit_code_of_a_stop():
    code = (
        "import atexit, subprocess; from arctic_hydra import __main__ as program\n"
        "interrupt = ['sh', '-c', 'while kill -INT $PPID; do :; done']\n"
        "atexit.register(lambda: subprocess.Popen(interrupt, stderr=subprocess.DEVNULL))\n"
        "program._dispatch = lambda arguments: 75\n"
        "raise SystemExit(program.main([]))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "more", "reasons"),
    [
        ("arctic_hydra.launch", "ranks=2", [None]),
        (
            "arctic_hydra.worker",
            "-m hydra/launcher=local hydra.launcher.slots=2 seed=1,2",
            ["received SIGINT", "received SIGINT"],
        ),
    ],
    ids=["agent", "sweep"],
)
def test_an_interrupt_while_interpreters_start_stops_the_runs(module, more, reasons, tmp_path):
    """An agent that has no ranks yet ends at once; a rank stops at its first step."""
    (site := tmp_path / "site").mkdir()
    arguments = f"{SMALLEST} trainer.train_iters=5000 trainer.eval_at_start=false tracking=[] checkpoint=[] {more}"
    process = start(arguments, tmp_path, PYTHONPATH=delay(site, module))
    wait_for_starts(site, len(reasons), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 75, output
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/default/*/record.json")]
    assert [item["status"] for item in found] == ["stopped"] * len(reasons)
    assert [item.get("result", {}).get("stop_reason") for item in found] == reasons
