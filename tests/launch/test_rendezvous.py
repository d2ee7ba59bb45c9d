"""The rendezvous of the agents of several machines."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from arctic_hydra.errors import ConfigError
from arctic_hydra.launch import nodes
from arctic_hydra.launch.rendezvous import join_rendezvous
from tests.command import environment
from tests.ranks import free_port


def meeting(count, index, run, port, host="localhost", timeout_seconds=60.0):
    """Call `join_rendezvous` in a separate process, as an agent does; return the process."""
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


def test_machines_connect_or_report_why_not():
    """Two that agree, two that differ, and one that waits in vain and says so meanwhile."""
    port = free_port()
    agree = [meeting(2, index, "a", port) for index in range(2)]
    assert [ends(process) for process in agree] == ["met\n", "met\n"]

    port = free_port()
    differ = [ends(process) for process in [meeting(2, index, run, port) for index, run in enumerate("ab")]]
    assert differ[0].startswith(
        "nnodes: node 1 runs b, but this machine (node 0) runs a; start the same command on every machine"
    )
    assert differ[1].startswith("nnodes: node 0 runs a, but this machine (node 1) runs b;")

    port = free_port()
    output = meeting(2, 0, "a", port, timeout_seconds=6).communicate(timeout=60)[0].splitlines()
    assert output[0] == f"node 0: waiting for node 1 of 2 at localhost:{port}"
    assert output[1].startswith(
        f"rendezvous: timed out after 6 s waiting for node 1 of 2 at localhost:{port}; start the command"
    )
    assert len(output) == 2, "nothing of torch's"
    for process in agree:
        process.communicate()


def test_an_unusable_address_is_reported():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        in_use = meeting(2, 0, "a", port)
        assert in_use.communicate()[0].startswith(
            f"rendezvous: port {port} of this machine is in use by another program;"
        )
    with pytest.raises(ConfigError, match="rendezvous: got nowhere.invalid:29500, but this machine cannot resolve"):
        join_rendezvous(nodes.Nodes(2, 1, "nowhere.invalid:29500"), "a")
