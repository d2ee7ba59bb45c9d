"""Ranks on several machines, here all on this one: by a command for each, and by a hostfile through a stand-in for ssh."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.cli import compose
from arctic_hydra.errors import ConfigError
from arctic_hydra.launch import failures, nodes
from arctic_hydra.launch.job import Job
from arctic_hydra.launch.rendezvous import join_rendezvous
from arctic_hydra.run_directory import RunDirectory, write_error
from tests.command import SMALL, environment, losses, only_run, run, start, wait_for_step
from tests.ranks import free_port

ARGUMENTS = (
    f"{SMALL} trainer.train_iters=60 trainer.eval_at_start=false tracking=[] checkpoint=[deepspeed] deepspeed=zero2"
)
HOSTS = "# two machines\nlocalhost slots=1\n127.0.0.1 slots=1  # the same one\n"


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A remote shell whose hosts are all this machine: it drops the host and runs the command."""
    path = tmp_path / "remote"
    path.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    path.chmod(0o755)
    return path


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


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    ("how", "text"),
    [("raise", "rank 1 failed first"), pytest.param("kill", "rank 1 was killed by SIGKILL", marks=pytest.mark.long)],
)
def test_the_first_failing_rank_of_another_machine_is_shown(how, text, my_lab, shell, tmp_path):
    (tmp_path / "hosts").write_text(HOSTS)
    sabotage = f"callback=[saboteur] callback.saboteur.how={how} trainer.collective_timeout_seconds=20"
    variables = {"ARCTIC_HYDRA_SSH": str(shell), "PYTHONPATH": str(my_lab)}
    done = run(f"{ARGUMENTS} {sabotage} hostfile=hosts", tmp_path, code=1, **variables)
    assert text in done.stderr
    assert ("ZeroDivisionError: sabotage" in done.stderr) == (how == "raise")


@pytest.mark.parametrize(
    ("message", "first"),
    [("shapes differ", "ValueError"), ("Timed out waiting 5000ms for recv operation to complete", "RankStalled")],
)
def test_a_rank_that_had_to_be_killed_is_the_cause_only_where_others_waited_for_it(message, first, tmp_path):
    directory = RunDirectory(tmp_path)
    write_error(tmp_path, 0, "ValueError", message, exit_code=1)
    failures.report_silent_failures(directory, {0: 1, 1: -9}, {1: "File x, line 1 in step"})
    assert directory.errors()[0]["kind"] == first


def meeting(count, index, run, port, host="localhost", timeout_seconds=60.0):
    """Call `join_rendezvous` in a process of its own, as an agent does; return the process."""
    code = (
        "import sys\nfrom arctic_hydra.errors import ArcticHydraError\nfrom arctic_hydra.launch.rendezvous import join_rendezvous\n"
        "from arctic_hydra.launch.nodes import Nodes\n"
        f"try: store = join_rendezvous(Nodes({count}, {index}, '{host}:{port}'), '{run}', {timeout_seconds}); print('met')\n"
        "except ArcticHydraError as error: sys.exit(str(error))\nsys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-u", "-c", code], env=environment(), **pipes)


def ends(process):
    """Return what a meeting said last; whom it waited for depends on how fast each machine starts."""
    for line in process.stdout:
        if ": waiting for node " not in line:
            return line
    raise AssertionError("it said nothing")


def test_machines_meet_or_say_why_not():
    """Two that agree, two that differ, and one that waits in vain and says so meanwhile."""
    port = free_port()
    agree = [meeting(2, index, "a", port) for index in range(2)]
    assert [ends(process) for process in agree] == ["met\n", "met\n"]

    port = free_port()
    differ = [ends(process) for process in [meeting(2, index, run, port) for index, run in enumerate("ab")]]
    assert differ[0].startswith(
        "nnodes: node 1 runs b, and this machine, node 0, a; give every machine the same command"
    )
    assert differ[1].startswith("nnodes: node 0 runs a, and this machine, node 1, b;")

    port = free_port()
    output = meeting(2, 0, "a", port, timeout_seconds=6).communicate(timeout=60)[0].splitlines()
    assert output[0] == f"node 0: waiting for node 1 of 2 at localhost:{port}"
    assert output[1].startswith(f"rendezvous: waited 6 s for node 1 of 2 at localhost:{port}; start its command")
    assert len(output) == 2, "nothing of torch's"
    for process in agree:
        process.communicate()


def test_a_place_that_cannot_be_used_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        in_use = meeting(2, 0, "a", port)
        assert in_use.communicate()[0].startswith(
            f"rendezvous: port {port} of this machine is in use by another program;"
        )
    with pytest.raises(ConfigError, match="rendezvous: got nowhere.invalid:29500, but this machine knows no host"):
        join_rendezvous(nodes.Nodes(2, 1, "nowhere.invalid:29500"), "a")


def test_a_host_that_cannot_be_reached_ends_the_others_at_once(tmp_path):
    (tmp_path / "remote").write_text(
        '#!/bin/sh\nhost=$1; shift\n[ $host = bad ] && { echo "no such host" >&2; exit 255; }\nexec sh -c "$*"\n'
    )
    (tmp_path / "remote").chmod(0o755)
    (tmp_path / "hosts").write_text("localhost slots=1\nbad slots=1\n")
    began = time.monotonic()
    done = run(f"{ARGUMENTS} hostfile=hosts", tmp_path, code=1, ARCTIC_HYDRA_SSH=str(tmp_path / "remote"))
    assert "error: hostfile: bad: ended with exit code 255 before the machines had met" in done.stderr
    assert "no such host" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - began < 60, "15 minutes, before"


def test_runs_that_differ_in_their_name_alone_meet_at_different_ports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text(HOSTS)
    jobs = [
        Job.of(
            compose.resolved(
                compose.without_hydra(compose.compose_config([f"name={name}", "hostfile=hosts"], "config"))
            ),
            [],
        )
        for name in "ab"
    ]
    assert jobs[0].directory.path.name == jobs[1].directory.path.name
    places = {nodes.machines_of(job.run, job.directory.path).rendezvous for job in jobs}
    assert len(places) == 2


def test_a_hostfile_has_hosts_and_equal_slots(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    assert nodes.read_hostfile(path) == (["localhost", "127.0.0.1"], 1)
    tree = {"hostfile": str(path), "nnodes": 1, "node_rank": 0, "ranks": "auto"}
    assert nodes.apply_hostfile(tree) | {"ranks": "1", "nnodes": 2} == nodes.apply_hostfile(tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 8\n", "hostfile: line 1 of {path} is 'a 8', expected `<host> slots=<number>`"),
        ("a slots=8\nb slots=4\n", "hostfile: {path} lists a 8, b 4; expected hosts with the same number of slots"),
        ("a slots=8\na slots=8\n", "hostfile: a stands in {path} twice"),
        ("# none\n", "hostfile: {path} lists no host"),
        ("\udcff slots=8\n", "hostfile: cannot read {path}: 'utf-8' codec can't decode byte 0xff"),
        (None, "hostfile: got {path}, but there is no such file"),
    ],
)
def test_a_bad_hostfile_is_refused(text, message, tmp_path):
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError) as refused:
        nodes.read_hostfile(path)
    assert message.format(path=path) in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("nnodes=2", "rendezvous: required with nnodes=2; pass rendezvous=<first machine>:<free port> on each machine"),
        ("nnodes=2 node_rank=2", "node_rank: got 2, expected 0 to 1 with nnodes=2"),
        ("nnodes=0", "nnodes: got 0, expected 1 or more"),
        ("rendezvous=node1", "rendezvous: got 'node1', expected <host>:<port>, such as node1:29500"),
        ("hostfile=hosts nnodes=2", "hostfile: starts every machine itself, so nnodes and node_rank have no effect"),
        ("hostfile=nowhere", "but there is no such file; expected lines such as `node1 slots=8`"),
    ],
)
def test_what_is_refused(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text(HOSTS)
    assert main(arguments.split()) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
