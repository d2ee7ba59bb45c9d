"""Starts the ranks of a run and waits for them: a plain child for one rank, a child with torch's elastic agent for several."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from arctic_hydra import python_flags
from arctic_hydra.files import code_file
from arctic_hydra.files.state_file import APPEND, open_regular
from arctic_hydra.launch.child import PARENT_VARIABLE, SECRETS_VARIABLE, limit_threads
from arctic_hydra.launch.failures import GRACE_SECONDS
from arctic_hydra.launch.fork_server import ForkedRank, ForkServer
from arctic_hydra.launch.nodes import Hosts, Nodes, RemoteAgent
from arctic_hydra.run_directory import RunDirectory, write_error
from arctic_hydra.stopping import ask_to_stop, blocked_signals, forwarded_signals

_LOST_PEER = re.compile(r"time(d )?-?out|connection|closed by peer|reset by peer", re.IGNORECASE)
"""Matches the errors of ranks that lost their peers."""


def start_ranks(
    directory: RunDirectory,
    ranks: int,
    lock: int | None,
    secrets: dict[str, Any],
    nodes: Nodes | Hosts | None = None,
    signals: list[int] | None = None,
    *,
    saves: bool = True,
) -> int:
    """Run `ranks` ranks on this machine, or on each of several hosts, until they end; return the child's exit code.

    Signals that arrive meanwhile are forwarded and appended to `signals`. Signals that this thread had blocked are received
    first, and then ranks on this machine alone are not started. Ranks that have nothing to save (`saves` false) are killed.
    """
    nodes = nodes or Nodes()
    agents: dict[str, RemoteAgent] = {}
    children: list[Any] = []
    seen = [] if signals is None else signals
    what = "at the next step" if saves else "at once, since this task has nothing to save"
    with forwarded_signals(lambda: children, what, seen, saves=saves) as killed_by:
        if seen and (isinstance(nodes, Hosts) or nodes.count == 1):
            return -seen[0]
        if isinstance(nodes, Hosts):
            variables = {SECRETS_VARIABLE: json.dumps(secrets)} if secrets else {}
            agents = nodes.start(directory.run_file, ranks, variables)
            children += agents.values()
        else:
            children.append(open_ranks(directory, ranks, lock, secrets, nodes=nodes))
        for child in children if seen else ():  # a signal that arrived before the children existed
            child.kill() if killed_by else ask_to_stop(child, seen[0])
        codes = _wait_for_agents(agents, directory) if agents else [children[0].wait()]
    code = next((code for code in codes if code), 0)
    if code and nodes.count > 1 and nodes.index == 0 and not killed_by:
        _wait_for_peers(directory, range(0 if isinstance(nodes, Hosts) else 1, nodes.count))
    return -signal.SIGINT if killed_by else code


@dataclass(frozen=True)
class MachineShare:
    """The part of this machine that a run may use; all of it by default."""

    gpus: tuple[str, ...] = ()
    """Devices as CUDA_VISIBLE_DEVICES names them; all that are visible when empty."""
    cores: int | None = None
    """Cores to share among the ranks; those that this process may use when None."""
    log: Path | None = None
    """File that the output of the ranks is appended to; the terminal when None."""
    fork_server: ForkServer | None = None
    """Starts a run of one rank, if it can; otherwise new interpreters do."""


def open_ranks(
    directory: RunDirectory,
    ranks: int,
    lock: int | None,
    secrets: dict[str, Any],
    share: MachineShare | None = None,
    nodes: Nodes | None = None,
) -> subprocess.Popen[bytes] | ForkedRank:
    """Start the ranks of this machine and return the child that runs them.

    The child starts with `SIGNALS` blocked, and receives those that arrived meanwhile as soon as it waits for them. Only
    SIGKILL ends it at any time.
    """
    share, nodes = share or MachineShare(), nodes or Nodes()
    alone = ranks == 1 and nodes.count == 1
    module = "arctic_hydra.worker" if alone else "arctic_hydra.launch"
    for_agent = [] if alone else [str(ranks), *nodes.arguments()]
    arguments = [str(directory.run_file), *for_agent, *code_file.arguments()]
    environment = rank_environment(ranks, secrets, share)
    # The child inherits the lock, which is held until both processes have ended.
    inherited = () if lock is None else (lock,)
    with _opened(share.log) as output:
        if alone and share.fork_server:
            rank = share.fork_server.open_rank(arguments, environment, inherited, output)
            if rank:
                return rank
        # In its own session it receives Ctrl-C only through this process, hence only once.
        with blocked_signals():
            return subprocess.Popen(
                [sys.executable, *python_flags(), "-u", "-m", module, *arguments],
                env=environment,
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )


@contextmanager
def _opened(log: Path | None) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(open_regular(log, APPEND), "ab") as output:
        yield output


def rank_environment(ranks: int, secrets: dict[str, Any], share: MachineShare) -> dict[str, str]:
    """Return the environment variables of the child that runs `ranks` ranks."""
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    if share.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    environment.pop(SECRETS_VARIABLE, None)  # one of the user's shell
    if secrets:
        environment[SECRETS_VARIABLE] = json.dumps(secrets)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)  # those of a launcher around this process would be mistaken for ours
    limit_threads(environment, ranks, share.cores)
    return environment


def _wait_for_agents(agents: dict[str, RemoteAgent], directory: RunDirectory) -> list[int]:
    """Wait for the agents of a hostfile, by host, and return their exit codes.

    When one has failed, the others exit too; those that wait for it at the rendezvous, or do not exit in time, are killed.
    """
    end = float("inf")
    while None in (codes := [agent.poll() for agent in agents.values()]):
        time.sleep(0.1)
        failed = [index for index, code in enumerate(codes) if code]
        if failed and end == float("inf"):
            met = directory.rendezvous_file.exists()
            end = time.monotonic() + (2 * GRACE_SECONDS if met else 0)
            [first, *_] = failed
            if not met and not directory.node_file(first).exists():
                message = (
                    f"hostfile: {list(agents)[first]}: exited with code {codes[first]} before the rendezvous completed; see the "
                    "output of its shell or agent above"
                )
                write_error(directory.path, -first, "NodeUnreachable", message)
        if time.monotonic() >= end:
            for agent in agents.values():
                agent.kill()
    return [code for code in codes if code is not None]


def _wait_for_peers(directory: RunDirectory, others: Sequence[int]) -> None:
    """Wait until the agents of the other machines have reported how they ended, which may include the cause."""
    if not directory.rendezvous_file.exists():
        return  # the rendezvous did not complete
    end = time.monotonic() + GRACE_SECONDS + 10
    silent = list(others)
    while silent and time.monotonic() < end:
        time.sleep(0.1)
        silent = [index for index in silent if not directory.node_file(index).exists()]
    first = next(iter(directory.errors()), None)
    if first and not _LOST_PEER.search(first["message"]):
        return  # a cause other than lost peers
    for index in silent:
        message = (
            f"node {index}: its agent disappeared without reporting an error; the machine probably failed, or all of its "
            "processes were killed"
        )
        write_error(directory.path, -index, "NodeDied", message)
