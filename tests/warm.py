"""Runs `python -m <module> ...` in a fork of a warm process, which has already imported the libraries of every rank.

`python -m tests.warm` is the server: a new interpreter that imports the libraries, starts no threads, and forks one child
per order. The child gets its own working directory, environment, session, arguments and standard streams, and runs the
module as `python -m` does. If the module starts `python -m` in turn, that process is also a fork: of a spare child, which
was forked before the first line of the module ran and is therefore as clean as the server.

PYTHONPATH may have more folders than the server's, in front of them, such as that of an extension package: a child has them
in `sys.path` before it imports anything.

Some cases need a new interpreter instead: environment variables that affect imports and differ from the server's, folders
on PYTHONPATH that replace modules, CUDA devices (the driver does not support forks) and other programs. Two differences
from a new interpreter remain: all forks of a server share its hash seed, and /proc shows the server's command line and
environment for them, although an agent looks there for the ranks that it has to stop.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from contextlib import closing, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SPARES = {"arctic_hydra.worker": 0, "arctic_hydra.launch": 2, "-m": 3, "tests.api.cells": 6, "arctic_hydra.api": 2}
"""Spare forks per module or argument (1 for all others); further child processes are new interpreters."""
RANK_VARIABLES = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
"""Variables that a run sets for its ranks and that OpenMP and BLAS read when loaded; composing loads neither."""
READ_LATER = frozenset(
    "ARCTIC_HYDRA_PARENT ARCTIC_HYDRA_SECRETS GROUP_RANK GROUP_WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT "
    "RANK ROLE_NAME ROLE_RANK ROLE_WORLD_SIZE TORCH_NCCL_ASYNC_ERROR_HANDLING WORLD_SIZE".split()
)
"""Variables that imports do not read, in addition to TORCHELASTIC_*, and that may differ from the server's."""
LATE_IMPORTS = (
    "alembic.config deepspeed.module_inject.auto_ep_layer git hydra_plugins.arctic_hydra.local hydra_plugins.arctic_hydra.optuna "
    "hydra_plugins.arctic_hydra.search_path hydra_plugins.arctic_hydra.slurm mlflow.store.tracking.sqlalchemy_workspace_store "
    "peft sqlalchemy.dialects.sqlite"
).split()
"""Modules that libraries import when they are first used; MLflow's `git` also starts a process."""

_inherited: dict[str, str] = {}
"""The server's environment, set in the server and its forks."""
_spares: list[Spare] = []


def import_libraries() -> None:
    """Import the libraries that every rank imports, in the same order."""
    from arctic_hydra.launch import fork_server

    fork_server.import_libraries()
    # Every engine from ZeRO-1 on imports this module; `optimizer_class` avoids its import of torch.compile, which is slow.
    importlib.import_module("arctic_hydra.optimizer.deepspeed_ops").optimizer_class("MuonWithAuxAdam")
    # A run imports MLflow's client in a thread, and these modules as it opens a SQLite store. Arrow's allocator, which they
    # load, must not start its thread here.
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    importlib.import_module("arctic_hydra.tracking.mlflow").import_client()
    for name in ("mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking.context.registry", "alembic.command"):
        importlib.import_module(name)


@cache
def prepare() -> None:
    """Import what every rank does, and do what nearly every run would do again in its own processes; start no threads."""
    import_libraries()
    import arctic_hydra
    from arctic_hydra import config, memory
    from arctic_hydra.cli.composition import compose

    programs = {"__main__", "worker"}
    for module in pkgutil.walk_packages(arctic_hydra.__path__, "arctic_hydra."):
        if module.name.rpartition(".")[2] not in programs:
            importlib.import_module(module.name)
    for name in LATE_IMPORTS:
        importlib.import_module(name)
    conversions = importlib.import_module("transformers.conversion_mapping")
    conversions.get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns
    # Fills caches of the grammar of Hydra and of fake tensors; `_execute` clears those that depend on installed extensions.
    memory.estimate(config.build(compose.compose_config(["trainer.train_iters=1"], "config").job))
    use_huge_pages()


def copy_new_stores() -> None:
    """Let MLflow fill each new SQLite file with a copy of the tables that its migrations, which take 1.5 s, make here."""
    import sqlalchemy
    from mlflow.store.db import utils

    migrate, tables = utils._initialize_tables, sqlite3.connect(":memory:", check_same_thread=False)
    migrate(sqlalchemy.create_engine("sqlite://", creator=lambda: tables, poolclass=sqlalchemy.StaticPool))

    def initialize(engine: Any) -> None:
        if engine.dialect.name != "sqlite" or not utils._is_empty_database(engine):
            migrate(engine)
            return
        with closing(engine.raw_connection()) as connection:
            tables.backup(connection.driver_connection)

    utils._initialize_tables = initialize


def use_huge_pages() -> None:
    """Move this process's data to huge pages, where Linux can: a fork then copies 200 page table entries instead of 100,000."""
    MADV_COLLAPSE, size = 25, 2 << 20
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, inode, *_ = line.split()
        start, end = (int(address, 16) for address in addresses.split("-"))
        if permissions == "rw-p" and inode == "0":
            for address in range(-(-start // size) * size, end // size * size, size):
                libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), MADV_COLLAPSE)


class Server:
    """Client of a warm process, which starts with the first run and exits with this process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._starting = threading.Lock()
        self.failure = ""
        """Why the warm process is no longer available."""

    @cached_property
    def process(self) -> tuple[subprocess.Popen[bytes], socket.socket, IO[str]]:
        """The server process, the socket for its orders, and the file with its output."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the server runs
        with theirs:
            command, number = [sys.executable, "-m", "tests.warm"], theirs.fileno()
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            environment = RANK_VARIABLES | self._environment
            process = subprocess.Popen([*command, str(number)], cwd=ROOT, env=environment, pass_fds=[number], **streams)
        return process, ours, log

    def run(
        self, module: str, arguments: list[str], folder: Path, timeout: float, pythonpath: str | None = None
    ) -> subprocess.CompletedProcess[str] | None:
        """Run `python -m module arguments` in `folder`; return None if the server cannot start it.

        `pythonpath` is that of the process, by default the server's.
        """
        from arctic_hydra import distributed

        variables = self._environment | ({} if pythonpath is None else {"PYTHONPATH": pythonpath})
        added = _added_folders(variables, self._environment)
        if self.failure or distributed.count_gpus() or added is None or any(map(_replaces_modules, added)):
            return None
        with self._starting:
            process, orders, log = self.process
        command = [sys.executable, "-m", module, *arguments]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, open(os.devnull) as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with theirs, suppress(OSError):  # the server has exited, so `recv` below returns nothing
                order = _order(command, str(folder), variables, [])
                socket.send_fds(orders, [order], [item.fileno() for item in (theirs, nothing, out, err)])
            ours.settimeout(timeout)
            try:
                if not ours.recv(64):
                    log.seek(0)
                    self.failure = f"it exited with {process.wait()}: {log.read()[-2000:]}"
                    warnings.warn(
                        f"the warm process is not available, so runs take longer: {self.failure}", stacklevel=3
                    )
                    return None
                code = ours.recv(64)
            except TimeoutError as error:  # closing our socket makes the server kill the child
                raise subprocess.TimeoutExpired(command, timeout, _text(out), _text(err)) from error
            assert code, f"the process that waits for {command} was killed"
            return subprocess.CompletedProcess(command, int(code), _text(out), _text(err))

    def close(self) -> None:
        """Stop the server and wait for it."""
        if "process" in vars(self):
            process, orders, log = self.process
            orders.close()
            process.wait(60)
            log.close()


def _added_folders(environment: dict[str, str], base: dict[str, str]) -> list[str] | None:
    """Return the folders that PYTHONPATH has in front of those of `base`; None if it does not end in them."""
    ours, theirs = ([*filter(None, item["PYTHONPATH"].split(os.pathsep))] for item in (environment, base))
    count = len(ours) - len(theirs)
    return ours[:count] if ours[max(count, 0) :] == theirs else None


def _replaces_modules(folder: str) -> bool:
    """Whether a module in `folder` is one that an interpreter without the folder finds elsewhere, or imports as it starts."""
    names = {name.partition(".")[0] for name in os.listdir(folder)} if os.path.isdir(folder) else set()
    modules = {name for name in names if name and not name.startswith("__")}
    return bool(modules & {"sitecustomize", "usercustomize"}) or any(map(importlib.util.find_spec, modules))


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode())


def _order(command: list[str], folder: str, environment: dict[str, str], blocked: list[int]) -> bytes:
    return json.dumps([command[1:], folder, environment, blocked]).encode()


def serve(orders: socket.socket) -> NoReturn:
    """Fork a process per order until the client exits."""
    _inherited.update(os.environ)
    subprocess.Popen._execute_child = _start_child  # type: ignore[attr-defined]
    import_libraries()
    copy_new_stores()
    prepare()
    gc.freeze()  # otherwise each garbage collection in a fork visits and copies all objects
    while True:
        order, fds, *_ = socket.recv_fds(orders, 1 << 20, 8)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # the process of an earlier order
        if not order:
            os._exit(0)
        if _fork() == 0:
            orders.close()
            _attend(order, socket.socket(fileno=fds[0]), fds[1:])
        for fd in fds:
            os.close(fd)


def _fork() -> int:
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, (
        f"{threads} threads: a fork has only the calling one, but may inherit locks that the others hold"
    )
    return os.fork()


def _attend(order: bytes, client: socket.socket, fds: list[int]) -> NoReturn:
    """Execute the order in a child; send its exit code to the client, or kill it if the client disconnects."""
    child = _fork()
    if child == 0:
        client.close()
        _execute(order, fds)
    client.send(b"started")
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, client], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        client.send(str(code).encode())
    os._exit(0)


def _execute(order: bytes, fds: list[int]) -> NoReturn:
    """Turn into the process that the order describes; `fds` are its standard streams and other inherited descriptors."""
    words, folder, environment, blocked = json.loads(order)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
        os.close(fd)
    start = words.index("-m")
    flags, module, arguments = words[:start], words[start + 1], words[start + 2 :]
    if "-u" in flags:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    sys.path[1:1] = _added_folders(environment, _inherited) or []
    from arctic_hydra.files import extensions

    for cached in (
        extensions.extensions,
        extensions.extension_of,
    ):  # there may be others in the folders that were added
        cached.cache_clear()
    _inherited["PYTHONPATH"] = environment["PYTHONPATH"]
    for _ in range(next((count for word, count in SPARES.items() if word in (module, *arguments)), 1)):
        _spares.append(Spare())
    sys.argv, sys.path[0] = ["-m", *arguments], folder
    if "-P" in flags or (module.startswith("arctic_hydra") and folder != str(ROOT)):
        del sys.path[0]  # the latter as `arctic_hydra/__init__.py` does it when it is imported
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


class Spare:
    """A child process that waits for an order to execute."""

    def __init__(self) -> None:
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = _fork()
        if self.pid:
            theirs.close()
            return
        for spare in (self, *_spares):
            spare.orders.close()
        _spares.clear()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until it has the mask of what it becomes
        order, fds, *_ = socket.recv_fds(theirs, 1 << 20, 16)
        theirs.close()
        if not order:
            os._exit(0)
        _execute(order, fds)


_start_fresh = subprocess.Popen._execute_child  # type: ignore[attr-defined]


def _start_child(self: Any, args: Any, *more: Any) -> None:
    """Replacement for `Popen._execute_child`: uses a spare as the child if possible, else starts a new process."""
    executable, preexec, _, pass_fds, cwd, env, _, _, shell, *pipes = more[:15]
    environment = dict(os.environ if env is None else env)
    in_new_session = more[20] and not (executable or preexec or shell)
    is_module = in_new_session and [item for item in args[:4] if item != "-P"][:3] == [sys.executable, "-u", "-m"]
    if not (_spares and is_module and _imports_alike(environment)):
        _start_fresh(self, args, *more)
        return
    spare = _spares.pop()
    streams = [fd if fd != -1 else number for number, fd in enumerate((pipes[0], pipes[3], pipes[5]))]
    blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
    with spare.orders:
        order = _order([*args], os.fspath(cwd or os.getcwd()), environment, blocked)
        socket.send_fds(spare.orders, [order], [*streams, *pass_fds])
    self.pid, self._child_created = spare.pid, True
    self._close_pipe_fds(*pipes)


def _imports_alike(environment: dict[str, str]) -> bool:
    def read(variables: dict[str, str]) -> dict[str, str]:
        return {k: v for k, v in variables.items() if k not in READ_LATER and not k.startswith("TORCHELASTIC_")}

    return read(RANK_VARIABLES | environment) == read(_inherited)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
