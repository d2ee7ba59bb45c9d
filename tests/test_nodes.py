"""Ranks on several machines, here all on this one: by a command for each, and by a hostfile through a stand-in for ssh."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from arctic_hydra import launch, nodes
from arctic_hydra.__main__ import main
from arctic_hydra.errors import ConfigError
from arctic_hydra.record import RunDirectory
from arctic_hydra.worker import write_error
from tests.command import SMALL, losses, only_run, run, start, wait_for_step
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
@pytest.mark.parametrize(("how", "text"), [("raise", "rank 1 failed first"), ("kill", "rank 1 was killed by SIGKILL")])
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
    launch.explain(directory, {0: 1, 1: -9}, {1: "File x, line 1 in step"})
    assert directory.errors()[0]["kind"] == first


def test_a_hostfile_has_hosts_and_equal_slots(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    assert nodes.read_hostfile(path) == (["localhost", "127.0.0.1"], 1)
    tree = {"hostfile": str(path), "nnodes": 1, "node_rank": 0, "ranks": "auto"}
    assert nodes.spread(tree) | {"ranks": "1", "nnodes": 2} == nodes.spread(tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 8\n", "hostfile: line 1 of {path} is 'a 8', expected `<host> slots=<number>`"),
        ("a slots=8\nb slots=4\n", "hostfile: {path} lists a 8, b 4; expected hosts with the same number of slots"),
        ("a slots=8\na slots=8\n", "hostfile: a stands in {path} twice"),
        ("# none\n", "hostfile: {path} lists no host"),
        (None, "hostfile: got {path}, but there is no such file"),
    ],
)
def test_a_bad_hostfile_is_refused(text, message, tmp_path):
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
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
