"""Hostfiles, and the keys that name several machines."""

from __future__ import annotations

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.cli import compose
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
