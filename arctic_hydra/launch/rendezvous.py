"""The rendezvous of the agents of several machines, before any rank starts: waits for all, and compares their runs.

It uses torch's store at the run's rendezvous address, which torch's own rendezvous shares afterwards. That one alone would
not say which machine it waits for, and would report failures as long tracebacks.
"""

from __future__ import annotations

import datetime
import socket
import time
from typing import Any

from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.launch.nodes import Nodes

RENDEZVOUS_SECONDS = 900
"""How long an agent waits for the agents of the other machines."""
_QUIET_SECONDS = 5
"""Time until it prints which machines it waits for."""
_REMIND_SECONDS = 60
_POLL_SECONDS = 0.2
_LINGER_SECONDS = 2.0
"""How long node 0 keeps the store open on failure, so that the others can read the reason."""


def join_rendezvous(nodes: Nodes, run: str, timeout_seconds: float = RENDEZVOUS_SECONDS) -> Any:
    """Wait until the agents of all machines have connected, and return the store, which stays open while it is referenced.

    `run` describes what this machine's command runs. Raises ArcticHydraError if another machine runs something else, if
    the address cannot be used, and after `timeout_seconds`.
    """
    from torch.distributed import DistError  # importing torch takes seconds, which do not count as waiting

    waiting = _PeerWait(nodes, timeout_seconds)
    store = _open_store(nodes, waiting)
    key = "arctic_hydra/node{}".format
    try:
        store.set(key(nodes.index), run)
        missing = [index for index in range(nodes.count) if index != nodes.index]
        while missing:
            for index in [index for index in missing if store.check([key(index)])]:
                missing.remove(index)
                _check_same_run(nodes, run, index, store.get(key(index)).decode())
            if missing:
                waiting.wait(", ".join(map(str, missing)))
    except DistError as error:  # node 0, which hosts the store, has exited
        raise ArcticHydraError(
            f"rendezvous: {nodes.rendezvous}: node 0 has exited; see the output of its command for the reason"
        ) from error
    return store


class _PeerWait:
    """Waits in short steps, prints which machines are missing, and times out."""

    def __init__(self, nodes: Nodes, timeout_seconds: float) -> None:
        self._nodes = nodes
        self._timeout = timeout_seconds
        self._began = time.monotonic()
        self._remind = self._began + _QUIET_SECONDS

    def wait(self, missing: str) -> None:
        """Wait a moment; raises ArcticHydraError after the timeout."""
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        where = f"node {missing} of {self._nodes.count} at {self._nodes.rendezvous}"
        if now - self._began > self._timeout:
            raise ArcticHydraError(
                f"rendezvous: timed out after {self._timeout:.0f} s waiting for {where}; start the command on that machine, or "
                "check there why it exited"
            )
        if now >= self._remind:
            print(f"node {self._nodes.index}: waiting for {where}", flush=True)
            self._remind = now + _REMIND_SECONDS


def _open_store(nodes: Nodes, waiting: _PeerWait) -> Any:
    from torch.distributed import DistError, TCPStore

    host, _, port = nodes.rendezvous.rpartition(":")
    first = nodes.index == 0
    while not _reachable(host, int(port), connect=not first):
        waiting.wait("0")
    try:
        return TCPStore(
            host,
            int(port),
            None,
            first,
            datetime.timedelta(seconds=RENDEZVOUS_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except DistError as error:
        if "EADDRINUSE" not in str(error):
            raise ArcticHydraError(f"rendezvous: {nodes.rendezvous}: {str(error).splitlines()[0]}") from error
        raise ConfigError(
            f"rendezvous: port {port} of this machine is in use by another program; pass rendezvous={host}:<a free port> on "
            "each machine"
        ) from error


def _reachable(host: str, port: int, *, connect: bool) -> bool:
    """Whether the host name resolves, and with `connect`, whether the port accepts connections."""
    try:
        if connect:
            socket.create_connection((host, port), timeout=5).close()
        else:
            socket.getaddrinfo(host, port)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            return False  # a temporary failure of name resolution
        raise ConfigError(
            f"rendezvous: got {host}:{port}, but this machine cannot resolve {host!r} ({error.strerror}); expected the name or "
            "address of node 0"
        ) from error
    except OSError:
        return False
    return True


def _check_same_run(nodes: Nodes, run: str, index: int, theirs: str) -> None:
    if theirs == run:
        return
    if nodes.index == 0:
        time.sleep(_LINGER_SECONDS)
    raise ConfigError(
        f"nnodes: node {index} runs {theirs}, but this machine (node {nodes.index}) runs {run}; start the same command on every "
        "machine, except for node_rank"
    )
