"""Forks ranks from a process that has imported their libraries, so that a further job of a sweep starts within a second.

`python -m arctic_hydra.launch.fork_server` imports what every rank imports, proves that it still has a single thread, and
then forks a child for each order that it receives from standard input, a socket. A child has a session, an environment and
output of its own and runs `worker.main`, as a new interpreter does. Two things differ from one: all children have the
server's hash seed, and tools such as `ps` show its command line for them.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, NoReturn

from arctic_hydra import log, python_flags, redaction
from arctic_hydra.distributed import choose_accelerator
from arctic_hydra.errors import describe
from arctic_hydra.launch.child import PARENT_VARIABLE, SECRETS_VARIABLE, die_with_parent
from arctic_hydra.stopping import SIGNALS, blocked_signals

_READ_LATER = (PARENT_VARIABLE, SECRETS_VARIABLE)
"""Variables that imports do not read, and that may differ from the server's."""
_ORDER_BYTES = 1 << 17
"""Largest order; the default limit of Linux for a message of a socket is above it."""
_READY = b"ready"
_ANSWER_SECONDS = 60.0
"""Within this a server that is ready answers an order, also on a busy machine."""


class ForkedRank:
    """A rank that the server has forked, with the methods of `subprocess.Popen` that a launcher needs."""

    def __init__(self, pid: int, process: int, server: socket.socket) -> None:
        """`process` is a pidfd, which never means another process; `server` receives the exit code."""
        self.pid = pid
        self.returncode: int | None = None
        self.died_with_server = False
        """Whether the kernel killed it because the server has ended."""
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
        """Send a signal to the rank; does nothing if it has ended. A signal handler may call it at any time."""
        if self.returncode is None:
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
            self.died_with_server = not message
            self.returncode = int(message) if message else -signal.SIGKILL
            self._server.close()
            os.close(self._process)
        return self.returncode


class ForkServer:
    """Client of the server, which ends with this process, or with `close`."""

    def __init__(self) -> None:
        self.problem = ""
        """Why ranks are started by new interpreters instead; empty while the server gets ready, too."""
        self.process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None
        self._environment: dict[str, str] = {}
        self._is_ready = False

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the server with the environment of the ranks, unless it runs already; it needs some seconds to get ready."""
        if self.process or self.problem:
            return
        self._environment = {name: value for name, value in environment.items() if name != SECRETS_VARIABLE}
        command = [sys.executable, *python_flags(), "-u", "-m", "arctic_hydra.launch.fork_server"]
        try:
            self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs, blocked_signals():
                self.process = subprocess.Popen(
                    command,
                    env=self._environment,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except OSError as error:
            self.problem = f"it did not start ({error.strerror})"

    def is_ready(self, *, wait: bool = False) -> bool:
        """Whether the server can fork ranks now; with `wait`, after its imports."""
        if self._orders and not self._is_ready and not self.problem:
            try:
                answer = self._orders.recv(_ORDER_BYTES, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            self._is_ready = answer == _READY
            if not self._is_ready:
                self.close()
                self.problem = answer.decode(errors="replace") or "it ended while it imported the libraries"
        return self._is_ready and not self.problem

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
        if not self.is_ready():
            return None
        ours, before = _read_by_imports(environment), _read_by_imports(self._environment)
        if changed := sorted(name for name in {*ours, *before} if ours.get(name) != before.get(name)):
            self.problem = f"environment variables have changed: {', '.join(changed)}"
            return None
        streams = [output.fileno()] * 2 if output else [1, 2]
        order = bytes([1 + len(streams) + len(pass_fds)]) + json.dumps([[*arguments], {**environment}]).encode()
        return None if len(order) > _ORDER_BYTES else self._send(order, [*streams, *pass_fds])

    def _send(self, order: bytes, fds: Sequence[int]) -> ForkedRank | None:
        assert self._orders and self.process
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.settimeout(_ANSWER_SECONDS)
            with theirs:
                socket.send_fds(self._orders, [order], [theirs.fileno(), *fds])
            answer, received, *_ = socket.recv_fds(ours, 64, 1)
        except OSError as error:
            self.close()  # with the ranks of a server that does not answer
            self.problem = f"it does not take orders ({error})"
            return None
        if received:
            ours.settimeout(None)
            return ForkedRank(int(answer), received[0], ours)
        ours.close()
        if answer:  # no descriptor was free for the one that was sent
            with suppress(ProcessLookupError):
                os.kill(int(answer), signal.SIGKILL)
        return None

    def close(self) -> None:
        """End the server and the ranks that still run."""
        if self.process and self._orders:
            self._orders.close()
            self.process.kill()
            self.process.wait()
            self.process = self._orders = None


def _read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _READ_LATER}


def import_libraries() -> None:
    """Import what every rank imports, in the same order, and without starting a thread."""
    log.quiet_libraries()
    choose_accelerator()
    _, transformers = map(importlib.import_module, ("arctic_hydra.runner", "transformers"))
    for name in ("AutoTokenizer", "AutoModelForCausalLM", "LlamaForCausalLM"):
        getattr(transformers, name)  # imports it lazily
    importlib.import_module("arctic_hydra.engine").import_deepspeed()


class _Server:
    """Forks a rank for each order, and reports how each ends, until the client closes the socket."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._ranks: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
        self._selector = selectors.DefaultSelector()
        self._selector.register(orders, selectors.EVENT_READ)
        self._set_by_imports: dict[str, str] = {}

    def serve(self) -> NoReturn:
        self._orders.send(self._prepare())
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._orders:
                    self._take_order()
                else:
                    self._report_end(key.fd)

    def _prepare(self) -> bytes:
        """Return `_READY`, or why this process cannot fork ranks."""
        before = dict(os.environ)
        try:
            import_libraries()
        except Exception as error:  # the ranks report it themselves
            return describe(error).encode()[:4000]
        self._set_by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}
        gc.freeze()  # otherwise a garbage collection in a child visits, and thereby copies, all objects
        if len(os.listdir("/proc/self/task")) > 1:
            return b"importing the libraries started threads, which a fork would not have"
        return _READY

    def _take_order(self) -> None:
        order, fds, *_ = socket.recv_fds(self._orders, _ORDER_BYTES, 8)
        if not order:
            os._exit(0)
        try:
            if len(fds) == order[0]:  # else the kernel has dropped some, at the limit of open files
                self._start(order[1:], fds)
        except OSError:  # no memory or no descriptors
            pass  # the client sees its socket closed, and starts an interpreter
        finally:
            for fd in fds:
                os.close(fd)

    def _start(self, order: bytes, fds: Sequence[int]) -> None:
        with socket.socket(fileno=os.dup(fds[0])) as client:
            server, pid = os.getpid(), os.fork()
            if pid == 0:
                try:
                    self._close_all(client, fds[0])
                    _become_rank(order, fds[1:3], server, self._set_by_imports)
                except BaseException:
                    traceback.print_exc()
                os._exit(1)
            process = -1
            try:
                process = os.pidfd_open(pid)
                self._selector.register(process, selectors.EVENT_READ)
                socket.send_fds(client, [str(pid).encode()], [process])
                self._ranks[process] = pid, client.dup()
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                with suppress(KeyError, ValueError, OSError):  # what did not get so far
                    self._selector.unregister(process)
                    os.close(process)
                raise

    def _close_all(self, client: socket.socket, fd: int) -> None:
        """Close what a child inherits of the server, so that the other clients see when the server ends."""
        self._selector.close()
        for other in (self._orders, client, *(item for _, item in self._ranks.values())):
            other.close()
        for process in (fd, *self._ranks):
            os.close(process)

    def _report_end(self, process: int) -> None:
        pid, client = self._ranks.pop(process)
        self._selector.unregister(process)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with client, suppress(OSError):  # the client may have ended
            client.send(str(code).encode())
        os.close(process)


def _become_rank(order: bytes, streams: Sequence[int], server: int, set_by_imports: dict[str, str]) -> NoReturn:
    import numpy

    from arctic_hydra import worker

    os.setsid()
    arguments, environment = json.loads(order)
    os.environ.clear()
    os.environ.update(environment | set_by_imports | {PARENT_VARIABLE: str(server)})
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    numpy.random.seed()  # from the system, as in a new interpreter; Python's own generator does that itself
    sys.modules["__main__"] = worker  # which multiprocessing imports in the processes that it spawns
    sys.argv = [str(worker.__file__), *arguments]
    worker.main()


def main() -> NoReturn:
    """Serve orders from standard input."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # here and in the ranks, until they wait for signals
    die_with_parent()
    redaction.protect()  # before libraries keep the streams that they write to
    orders = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    _Server(orders).serve()


if __name__ == "__main__":
    main()
