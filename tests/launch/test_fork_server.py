"""Ranks that are forks of a process with the libraries: equal to a new interpreter, stopped, killed, refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from arctic_hydra.launch import ranks
from arctic_hydra.launch.fork_server import ForkServer
from arctic_hydra.run_directory import RunDirectory
from tests.command import SMALLEST, environment, losses, only_run, run

ENDLESS = f"{SMALLEST} name=endless data/eval_sources=[] trainer.epochs=1000 tracking=[]"


@pytest.fixture(scope="module", autouse=True)
def variables():
    """The environment of a user's shell, which differs from that of tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment().keys():
            patch.delenv(name)
        for name, value in environment(OMP_NUM_THREADS="1").items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def server():
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def share(server):
    return ranks.MachineShare(cores=1, fork_server=server)


def open_rank(directory, share):
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # differs from test to test
    return ranks.open_ranks(directory, 1, None, {}, share)


def wait_for_a_step(folder, child):
    end = time.monotonic() + 60
    while child.poll() is None and not (folder / "metrics.jsonl").exists():
        assert time.monotonic() < end, "no step was logged"
        time.sleep(0.05)
    assert child.poll() is None


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """The directory of a run that ends only if it is stopped."""
    folder = tmp_path_factory.mktemp("endless")
    run(f"{ENDLESS} trainer.exit_iteration_this_run=1 checkpoint=[]", folder, code=75)
    directory = only_run(folder, "endless")
    text = (directory / "run.json").read_text()
    (directory / "run.json").write_text(text.replace('"exit_iteration_this_run": 1', '"exit_iteration_this_run": 0'))
    return directory


def copy(directory, to):
    to.mkdir()
    shutil.copy(directory / "run.json", to)
    return RunDirectory(to)


def test_a_forked_rank_equals_a_new_interpreter(share, server, tmp_path):
    run(f"{SMALLEST} data/eval_sources=[] trainer.train_iters=2 tracking=[]", tmp_path)
    original = only_run(tmp_path)
    found = {}
    for name, part in (("forked", share), ("again", share), ("fresh", ranks.MachineShare(cores=1))):
        directory = copy(original, tmp_path / name)
        with open(tmp_path / f"{name}.txt", "wb") as output:
            part = ranks.MachineShare(cores=1, output=output, fork_server=part.fork_server)
            child = open_rank(directory, part)
            assert isinstance(child, subprocess.Popen) == (name == "fresh"), server.problem
            assert child.wait() == 0 and child.poll() == 0
        weights = (directory.path / "export" / "model.safetensors").read_bytes()
        found[name] = losses(directory.path), hashlib.sha256(weights).hexdigest(), directory.result()["status"]
        assert "step 2/2" in (tmp_path / f"{name}.txt").read_text()
    assert found["forked"] == found["again"] == found["fresh"]


def test_a_forked_rank_is_stopped_and_killed(share, endless, tmp_path):
    for number, code, status in ((signal.SIGTERM, 0, "stopped"), (signal.SIGKILL, -9, None)):
        directory = copy(endless, tmp_path / signal.Signals(number).name)
        child = open_rank(directory, share)
        wait_for_a_step(directory.path, child)
        assert os.getsid(child.pid) == child.pid, "Ctrl-C reaches it through its parent only"
        child.kill() if number == signal.SIGKILL else child.send_signal(number)
        assert child.wait() == code
        child.send_signal(number)  # it has ended
        assert (directory.result() or {}).get("status") == status


def test_another_environment_or_a_long_order_needs_a_new_interpreter(share, server):
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    environment = ranks._environment(1, {}, share)
    assert server.open_rank([], environment | {"PYTHONHASHSEED": "1"}, (), None) is None and not server.problem
    assert server.open_rank(["x" * 2**22], environment, (), None) is None and not server.problem


def test_ranks_end_with_their_server(share, server, endless, tmp_path):
    directory = copy(endless, tmp_path / "run")
    child = open_rank(directory, share)
    server._server[0].kill()
    assert child.wait() == -signal.SIGKILL
    end = time.monotonic() + 30
    while os.path.exists(f"/proc/{child.pid}/status") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child.pid}/exe"), "the kernel kills it with its parent"
    child = open_rank(directory, share)
    assert isinstance(child, subprocess.Popen) and server.problem == "the process that forks ranks has ended"
    child.kill()
    child.wait()


def test_a_server_with_threads_forks_nothing(tmp_path):
    text = (
        "import socket, threading\n"
        "from arctic_hydra.launch import fork_server\n"
        "fork_server.import_libraries = lambda: threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "fork_server.serve(socket.socket(fileno=0))"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = ForkServer()
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", text], stdin=theirs)
    server._server = process, ours
    assert server.open_rank([], {}, (), None) is None
    assert server.problem == "importing the libraries started threads, which a fork would not have"
    server.close()
    assert process.returncode == 0
