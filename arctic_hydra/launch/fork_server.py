"""Forks ranks from a process that has imported their libraries, so that a further job of a sweep starts within a second.

`python -m arctic_hydra.launch.fork_server` imports what every rank imports, proves that it still has a single thread, and
then forks a child for each order that it receives from standard input, a socket. A child has a session, an environment and
output of its own and runs `worker.main`, as a new interpreter does. Two things differ from one: all children have the
server's hash seed, and tools such as `ps` show its command line for them.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, NoReturn

from arctic_hydra import python_flags
from arctic_hydra.launch.child import PARENT_VARIABLE, SECRETS_VARIABLE, die_with_parent
from arctic_hydra.stopping import block_signals, blocked_signals

_READ_LATER = (PARENT_VARIABLE, SECRETS_VARIABLE)
"""Variables that imports do not read, and that may differ from the server's."""
_ORDER_BYTES = 1 << 20


class ForkedRank:
    """A rank that the server has forked, with the methods of `subprocess.Popen` that a launcher needs."""

    def __init__(self, pid: int, process: int, server: socket.socket) -> None:
        """`process` is a pidfd, which never means another process; `server` receives the exit code."""
        self.pid = pid
        self.returncode: int | None = None
        self._process, self._server = process, server

    def poll(self) -> int | None:
        """Return the exit code, or None while the rank runs."""
        return self._exit_code(socket.MSG_DONTWAIT)

    def wait(self) -> int:
        """Wait for the rank, and return its exit code."""
        code = self._exit_code(0)
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the rank; does nothing if it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, number)

    def kill(self) -> None:
        """Kill the rank."""
        self.send_signal(signal.SIGKILL)

    def _exit_code(self, flags: int) -> int | None:
        if self.returncode is None:
            try:
                message = self._server.recv(64, flags)
            except BlockingIOError:
                return None
            self.returncode = int(message) if message else -signal.SIGKILL  # the kernel killed it with the server
            self._server.close()
            os.close(self._process)
        return self.returncode


class ForkServer:
    """Client of the server, which starts with the first rank and ends with this process, or with `close`."""

    def __init__(self) -> None:
        self.problem = ""
        """Why ranks are started by new interpreters instead."""
        self._server: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._environment: dict[str, str] = {}

    def open_rank(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        pass_fds: Sequence[int],
        output: IO[bytes] | None,
    ) -> ForkedRank | None:
        """Start `python -m arctic_hydra.worker <arguments>`; return None if a new interpreter has to do that.

        The rank writes to `output`, by default to the streams of this process, and starts with `SIGNALS` blocked.
        """
        if self.problem:
            return None
        if self._server is None:
            self._server = self._start(environment)
        if _read_by_imports(environment) != _read_by_imports(self._environment):
            return None
        streams = [output.fileno()] * 2 if output else [1, 2]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = json.dumps([[*arguments], {**environment}]).encode()
        with theirs:
            try:
                socket.send_fds(self._server[1], [order], [theirs.fileno(), *streams, *pass_fds])
            except OSError as error:
                if error.errno == errno.EMSGSIZE:  # an environment of hundreds of kilobytes
                    ours.close()
                    return None
        answer, received, *_ = socket.recv_fds(ours, 1024, 1)
        if received:
            return ForkedRank(int(answer), received[0], ours)
        ours.close()
        self.problem = answer.decode() or "the process that forks ranks has ended"
        return None

    def close(self) -> None:
        """End the server and the ranks that still run."""
        if self._server:
            process, orders = self._server
            orders.close()
            process.wait()
            self._server = None

    def _start(self, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
        self._environment = {name: value for name, value in environment.items() if name != SECRETS_VARIABLE}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, *python_flags(), "-u", "-m", "arctic_hydra.launch.fork_server"]
        with theirs, blocked_signals():
            process = subprocess.Popen(command, env=self._environment, stdin=theirs.fileno(), start_new_session=True)
        return process, ours


def _read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _READ_LATER}


def import_libraries() -> None:
    """Import what every rank imports, in the same order, and without starting a thread."""
    from arctic_hydra import log
    from arctic_hydra.distributed import count_gpus

    log.quiet_libraries()
    if count_gpus() == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
    _, transformers = map(importlib.import_module, ("arctic_hydra.runner", "transformers"))
    for name in ("AutoTokenizer", "AutoModelForCausalLM", "LlamaForCausalLM"):
        getattr(transformers, name)  # imports it lazily
    importlib.import_module("arctic_hydra.engine").import_deepspeed()


def serve(orders: socket.socket) -> NoReturn:
    """Fork a rank for each order, and report how each ends, until the client closes the socket."""
    import_libraries()
    has_threads = len(os.listdir("/proc/self/task")) > 1
    problem = "importing the libraries started threads, which a fork would not have" if has_threads else ""
    gc.freeze()  # otherwise a garbage collection in a child visits, and thereby copies, all objects
    ranks: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
    while True:
        ready, _, _ = select.select([orders.fileno(), *ranks], [], [])
        for process in ready:
            if process in ranks:
                pid, client = ranks.pop(process)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with client, suppress(OSError):  # the client may have ended
                    client.send(str(code).encode())
                os.close(process)
        if orders.fileno() not in ready:
            continue
        order, fds, *_ = socket.recv_fds(orders, _ORDER_BYTES, 8)
        if not order:
            os._exit(0)
        client, server = socket.socket(fileno=fds[0]), os.getpid()
        if problem:
            client.send(problem.encode())
            client.close()
        elif (pid := os.fork()) == 0:
            for other in (orders, client, *(item for _, item in ranks.values())):
                other.close()  # else the others would not see that the server ends
            for process in ranks:
                os.close(process)
            _become_rank(order, fds[1:3], server)
        else:
            process = os.pidfd_open(pid)
            ranks[process] = pid, client
            with suppress(OSError):
                socket.send_fds(client, [str(pid).encode()], [process])
        for fd in fds[1:]:
            os.close(fd)


def _become_rank(order: bytes, streams: Sequence[int], server: int) -> NoReturn:
    from arctic_hydra import worker

    os.setsid()
    arguments, environment = json.loads(order)
    os.environ.clear()
    os.environ.update(environment | {PARENT_VARIABLE: str(server)})
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    sys.argv = [str(worker.__file__), *arguments]
    worker.main()


if __name__ == "__main__":
    block_signals()
    die_with_parent()
    standard_input = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    serve(standard_input)
