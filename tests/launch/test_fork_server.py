"""Ranks that are forks of a process with the libraries: equal to a new interpreter, stopped, killed, refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from arctic_hydra.launch import ranks
from arctic_hydra.launch.child import SECRETS_VARIABLE
from arctic_hydra.launch.fork_server import ForkServer
from arctic_hydra.run_directory import RunDirectory
from tests.command import SMALLEST, environment, losses, only_run, run, start, wait_for_step

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


def variables_of_a_rank():
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # differs from test to test
    return ranks.rank_environment(1, {}, ranks.MachineShare(cores=1))


@pytest.fixture(scope="module")
def server():
    server = ForkServer()
    server.start(variables_of_a_rank())
    assert not server.is_ready() and server.open_rank([], variables_of_a_rank(), (), None) is None, (
        "nobody waits for it"
    )
    assert server.is_ready(wait=True)
    yield server
    server.close()


def open_rank(directory, server, *, lock=None, log=None):
    variables_of_a_rank()
    share = ranks.MachineShare(cores=1, log=log, fork_server=server)
    return ranks.open_ranks(directory, 1, lock, {}, share)


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for_a_step(folder, child):
    wait_until(lambda: child.poll() is not None or (folder / "metrics.jsonl").exists())
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


def test_a_forked_rank_equals_a_new_interpreter(server, tmp_path):
    run(f"{SMALLEST} data/eval_sources=[] trainer.train_iters=2 tracking=[]", tmp_path)
    original = only_run(tmp_path)
    found = {}
    for name in ("forked", "again", "fresh"):
        directory = copy(original, tmp_path / name)
        child = open_rank(directory, None if name == "fresh" else server, log=tmp_path / f"{name}.txt")
        assert isinstance(child, subprocess.Popen) == (name == "fresh"), server.problem
        assert child.wait() == 0 and child.poll() == 0
        weights = (directory.path / "export" / "model.safetensors").read_bytes()
        found[name] = losses(directory.path), hashlib.sha256(weights).hexdigest(), directory.result()["status"]
        assert "step 2/2" in (tmp_path / f"{name}.txt").read_text()
    assert found["forked"] == found["again"] == found["fresh"]


def test_a_forked_rank_is_stopped_and_killed_and_holds_only_its_own_lock(server, endless, tmp_path):
    stopped, killed = copy(endless, tmp_path / "stopped"), copy(endless, tmp_path / "killed")
    first = open_rank(stopped, server, lock=stopped.lock())
    second = open_rank(killed, server, lock=killed.lock())
    stopped.release()
    killed.release()
    wait_for_a_step(stopped.path, first)
    wait_for_a_step(killed.path, second)
    assert os.getsid(first.pid) == first.pid, "Ctrl-C reaches it through its parent only"
    assert stopped.holder() and killed.holder()
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 0 and stopped.result()["status"] == "stopped"
    assert not stopped.holder() and killed.holder()
    second.kill()
    assert second.wait() == -signal.SIGKILL and not killed.result() and not killed.holder()
    second.send_signal(signal.SIGTERM)  # it has ended


def test_what_a_library_logs_in_a_forked_rank_is_masked(tmp_path):
    """A library keeps the stream that it finds when it is imported."""
    script = tmp_path / "script.py"
    script.write_text(
        "import logging, os, socket, sys\n"
        "from arctic_hydra import worker; from arctic_hydra.redaction import masking\n"
        "from arctic_hydra.launch import fork_server\n"
        "def imports():\n"
        "    logging.getLogger('library').addHandler(logging.StreamHandler(sys.stdout))\n"
        "def rank():\n"
        "    masking.learn(['a-planted-secret'])\n"
        "    logging.getLogger('library').error('token: a-planted-secret')\n"
        "    os._exit(0)\n"
        "fork_server.import_libraries, worker.main = imports, rank\n"
        "fork_server.main()\n"
    )
    with open(tmp_path / "out.txt", "wb") as output:
        server = _server_of([str(script)])
        assert server.is_ready(wait=True)
        rank = server.open_rank(["run.json"], {}, (), output)
        assert rank is not None and rank.wait() == 0
        server.close()
    text = (tmp_path / "out.txt").read_text()
    assert text.startswith("token: ") and "a-planted-secret" not in text


def _server_of(arguments):
    server = ForkServer()
    server._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server.process = subprocess.Popen([sys.executable, *arguments], stdin=theirs, env=environment())
    server._environment = {}
    return server


def test_a_long_order_needs_a_new_interpreter(server):
    assert server.open_rank(["x" * 2**18], variables_of_a_rank(), (), None) is None and not server.problem


@pytest.mark.parametrize(
    ("imports", "problem"),
    [
        (
            "threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "importing the libraries started threads",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("os._exit(3)", "it ended while it imported the libraries"),
    ],
)
def test_a_server_that_cannot_fork_says_why(imports, problem):
    text = (
        "import os, threading\nfrom arctic_hydra.launch import fork_server\n"
        f"fork_server.import_libraries = lambda: {imports}\nfork_server.main()"
    )
    server = _server_of(["-c", text])
    assert not server.is_ready(wait=True) and problem in server.problem and server.process is None
    assert server.open_rank([], {}, (), None) is None


FAILING = """
import errno, os
from arctic_hydra import worker
from arctic_hydra.launch import fork_server

def fail_once(name):
    real, calls = getattr(os, name), []

    def call(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EAGAIN, "planted")
        return real(*arguments)

    setattr(os, name, call)

fail_once("fork")
fail_once("pidfd_open")
fork_server.import_libraries, worker.main = lambda: None, lambda: os._exit(7 if "ARCTIC_HYDRA_SECRETS" in os.environ else 8)
fork_server.main()
"""


def test_failed_forks_leave_nothing_and_later_ones_work():
    """As at the limit of processes, or of open files; a new interpreter starts the rank then."""
    server = _server_of(["-c", FAILING])
    assert server.is_ready(wait=True)
    assert [server.open_rank([], {}, (), None) for _ in range(2)] == [None, None] and not server.problem
    for secrets, code in (({SECRETS_VARIABLE: "x"}, 7), ({}, 8)):
        rank = server.open_rank([], secrets, (), None)
        assert rank is not None and rank.wait() == code, "it has the secrets of its own order alone"
    assert not psutil.Process(server.process.pid).children()
    server.close()


def test_another_environment_needs_new_interpreters(tmp_path):
    server = _server_of(["-c", "from arctic_hydra.launch import fork_server as f; f.import_libraries = int; f.main()"])
    assert server.is_ready(wait=True)
    assert server.open_rank([], {"OMP_NUM_THREADS": "9"}, (), None) is None
    assert server.problem == "environment variables have changed: OMP_NUM_THREADS"
    server.close()


def test_jobs_after_the_first_are_forked_and_end_with_a_killed_sweep(tmp_path):
    sweep = start(f"-m {ENDLESS} seed=1,2 hydra.sweep.dir=sweep", tmp_path)
    wait_for_step(tmp_path, 1, sweep, "endless")
    [first] = _jobs(tmp_path)
    assert psutil.Process(first).ppid() == sweep.pid, "the first job does not wait for the server"
    [server] = [child for child in psutil.Process(sweep.pid).children() if child.pid != first]
    assert "arctic_hydra.launch.fork_server" in server.cmdline()
    wait_until(lambda: _is_idle(server))
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: len(_jobs(tmp_path)) == 2)
    second = _jobs(tmp_path)[1]
    assert psutil.Process(second).ppid() == server.pid
    sweep.kill()
    sweep.wait()
    wait_until(lambda: not any(map(psutil.pid_exists, [server.pid, second])))


def _is_idle(server):
    before = server.cpu_times().user
    time.sleep(0.5)
    return before > 1 and server.cpu_times().user == before


def _jobs(folder):
    file = folder / "sweep" / "sweep.json"
    jobs = json.loads(file.read_text())["jobs"] if file.exists() else []
    return [job["submission"]["pid"] for job in jobs if job["submission"]]


def test_ranks_end_with_their_server(server, endless, tmp_path):
    directory = copy(endless, tmp_path / "run")
    child = open_rank(directory, server)
    server.process.kill()
    assert child.wait() == -signal.SIGKILL
    wait_until(lambda: not os.path.exists(f"/proc/{child.pid}/exe"))
    child = open_rank(directory, server)
    assert isinstance(child, subprocess.Popen) and server.problem.startswith("it does not take orders")
    child.kill()
    child.wait()
