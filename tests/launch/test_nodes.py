"""Hostfiles, and the keys that name several machines."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.cli.composition import compose
from arctic_hydra.errors import ConfigError
from arctic_hydra.launch import nodes
from arctic_hydra.launch.job import Job
from tests.launch.machines import HOSTS


def test_runs_that_differ_only_in_their_name_use_different_ports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text(HOSTS)
    jobs = [
        Job.of(compose.with_paths(compose.compose_config([f"name={name}", "hostfile=hosts"], "config").job), [])
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
        ("a slots=8\na slots=8\n", "hostfile: a is listed twice in {path}"),
        ("# none\n", "hostfile: {path} lists no host"),
        (
            "-oProxyCommand=x slots=1\n",
            "hostfile: line 1 of {path} is '-oProxyCommand=x slots=1', expected `<host> slots",
        ),
        ("a@-x slots=1\n", "hostfile: line 1 of {path} is 'a@-x slots=1', expected `<host> slots=<number>`"),
        ("$(touch\u2007x) slots=1\n", "hostfile: line 1 of {path} is '$(touch\\u2007x) slots=1', expected"),
        ("a;b slots=1\n", "hostfile: line 1 of {path} is 'a;b slots=1', expected `<host> slots=<number>`"),
        ("`x` slots=1\n", "hostfile: line 1 of {path} is '`x` slots=1', expected `<host> slots=<number>`"),
        ("'a' slots=1\n", "expected `<host> slots=<number>`"),
        ("a\u2028 slots=1\n", "hostfile: line 1 of {path} is 'a', expected `<host> slots=<number>`"),
        ("a\0 slots=1\n", "hostfile: line 1 of {path} is 'a\\x00 slots=1', expected `<host> slots=<number>`"),
        ("é slots=1\n", "hostfile: line 1 of {path} is 'é slots=1', expected `<host> slots=<number>`"),
        ("a slots=99999\n", "hostfile: line 1 of {path} is 'a slots=99999', expected `<host> slots=<number>`"),
        ("a slots=\u0663\n", "expected `<host> slots=<number>`"),
        (f"{'x' * 10_000} slots=0\n", "hostfile: line 1 of {path} is 'xxx"),
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
        ("nnodes=0", "nnodes: got 0, expected 1 to 100,000"),
        ("rendezvous=node1", "rendezvous: got 'node1', expected <host>:<port>, such as node1:29500"),
        ("rendezvous=-x:29500", "rendezvous: got '-x:29500', expected <host>:<port>, such as node1:29500"),
        ("rendezvous='$(x):29500'", "rendezvous: got '$(x):29500', expected <host>:<port>, such as node1:29500"),
        ("rendezvous=node1:65536", "rendezvous: got 'node1:65536', expected <host>:<port>, such as node1:29500"),
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


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("ssh 'x", 'ARCTIC_HYDRA_SSH: got "ssh \'x", which is not a shell command: No closing quotation'),
        (" ", "ARCTIC_HYDRA_SSH: got ' ', expected a command such as `ssh -p 2222`; unset it to use ssh"),
        (
            "nowhere -p 1",
            "hostfile: there is no command 'nowhere' on this machine, which starts the ranks on the hosts",
        ),
    ],
)
def test_a_remote_shell_that_cannot_start_is_refused_before_the_run_is_written(
    command, text, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCTIC_HYDRA_SSH", command)
    (tmp_path / "hosts").write_text(HOSTS)
    assert main(["hostfile=hosts", "tracking=[]"]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_the_user_of_the_first_host_is_no_part_of_the_rendezvous(tmp_path, monkeypatch):
    monkeypatch.setenv("ARCTIC_HYDRA_SSH", "true")
    path = tmp_path / "hosts"
    path.write_text("me@node-1.lab_a slots=1\nnode2 slots=1\n")
    run = SimpleNamespace(hostfile=str(path), rendezvous=None)
    found = nodes.machines_of(run, tmp_path)
    assert found.names == ["me@node-1.lab_a", "node2"]
    assert re.fullmatch(r"node-1\.lab_a:\d{5}", found.rendezvous)


def test_paths_and_variables_reach_another_machine_unchanged(tmp_path, monkeypatch):
    """Spaces, quotes and command substitutions in the folders and in the environment; the values are not in the command."""
    odd = "a 'b' \"c\" $(touch canary) `touch canary`; touch canary #"
    folder = tmp_path / f"-{odd}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    remote = tmp_path / "remote"
    remote.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$0.$1"\nshift\nexec sh -c "$*"\n')
    python = tmp_path / f"python {odd.replace('/', '')}"
    python.write_text('#!/bin/sh\npwd > "$0.out"\nprintf "%s\\0" "$PYTHONPATH" "$@" >> "$0.out"\ncat >> "$0.in"\n')
    for program in (remote, python):
        program.chmod(0o755)
    monkeypatch.setenv("ARCTIC_HYDRA_SSH", f"'{remote}'")
    monkeypatch.setenv("PYTHONPATH", odd)
    monkeypatch.setenv("HF_TOKEN", f"token\n{odd}")
    monkeypatch.setattr(sys, "executable", str(python))
    [agent] = (
        nodes.Hosts(["node1"], "node1:29500").start(folder / "run.json", 2, {"ARCTIC_HYDRA_SECRETS": odd}).values()
    )
    agent._process.stdin.close()
    assert agent._process.wait(30) == 0
    where, _, arguments = python.with_name(f"{python.name}.out").read_text().partition("\n")
    assert where == str(folder)
    assert arguments.split("\0")[:-1] == [
        *(odd, "-P", "-u", "-m", "arctic_hydra.launch", str(folder / "run.json"), "2", "--remote")
    ]
    sent = json.loads(python.with_name(f"{python.name}.in").read_text())
    assert (sent["HF_TOKEN"], sent["ARCTIC_HYDRA_SECRETS"]) == (f"token\n{odd}", odd)
    assert "token" not in (tmp_path / "remote.node1").read_text(), "other users see command lines"
    assert not list(tmp_path.rglob("canary"))
