"""The rendezvous of the agents of several machines, before any rank starts: who is missing, and whether their runs agree.

Its store is torch's, at the run's rendezvous address; torch's own rendezvous shares it afterwards. Torch's alone would wait
without saying for whom, and report a failure as a long traceback.
"""

from __future__ import annotations

import datetime
import socket
import time
from typing import Any

from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.launch.nodes import Nodes

RENDEZVOUS_SECONDS = 900
"""How long an agent waits for those of the other machines."""
_QUIET_SECONDS = 5
"""After how long it says whom it waits for."""
_REMIND_SECONDS = 60
_POLL_SECONDS = 0.2
_LINGER_SECONDS = 2.0
"""How long the first machine keeps the store open, for the others to read there why it ends."""


def join_rendezvous(nodes: Nodes, run: str, timeout_seconds: float = RENDEZVOUS_SECONDS) -> Any:
    """Wait until the agents of all machines are there, and return the store, open while somebody holds it.

    `run` says what this machine's command runs. Raises ArcticHydraError where another's runs something else, where the
    place cannot be used, and after `timeout_seconds`.
    """
    from torch.distributed import DistError  # takes seconds, which are nobody's delay

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
    except DistError as error:  # the store is gone
        raise ArcticHydraError(f"rendezvous: {nodes.rendezvous}: node 0 has left; its command tells why") from error
    return store


class _PeerWait:
    """Waits in small steps, says for whom, and gives up in time."""

    def __init__(self, nodes: Nodes, timeout_seconds: float) -> None:
        self._nodes = nodes
        self._timeout = timeout_seconds
        self._began = time.monotonic()
        self._remind = self._began + _QUIET_SECONDS

    def wait(self, whom: str) -> None:
        """Wait a moment; raises ArcticHydraError once it has been too long."""
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        where = f"node {whom} of {self._nodes.count} at {self._nodes.rendezvous}"
        if now - self._began > self._timeout:
            raise ArcticHydraError(
                f"rendezvous: waited {self._timeout:.0f} s for {where}; start its command, or see there why it ended"
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
    """Whether the host's name is known, and with `connect`, whether somebody listens there."""
    try:
        if connect:
            socket.create_connection((host, port), timeout=5).close()
        else:
            socket.getaddrinfo(host, port)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            return False  # the name service is away for a moment
        raise ConfigError(
            f"rendezvous: got {host}:{port}, but this machine knows no host {host!r} ({error.strerror}); expected the name or "
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
        f"nnodes: node {index} runs {theirs}, and this machine, node {nodes.index}, {run}; give every machine the same command, "
        "but for node_rank"
    )
