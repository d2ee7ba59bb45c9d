"""Starting ranks: a plain child for one, a child that holds torch's elastic agent for several, an agent per machine.

The composing process calls `start_ranks` and stays light; `python -m arctic_hydra.launch <run.json> <ranks>` is the
agent. Agents of several machines meet at the first one's address and see each other's failures in the run's directory.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from arctic_hydra.errors import ArcticHydraError, print_error
from arctic_hydra.meeting import RENDEZVOUS_SECONDS, meet
from arctic_hydra.nodes import Hosts, Nodes, RemoteAgent
from arctic_hydra.record import RunDirectory
from arctic_hydra.stopping import SIGNALS, block_signals, blocked_signals, forwarded_signals
from arctic_hydra.worker import PARENT_VARIABLE, SECRETS_VARIABLE, die_with_parent, write_error

GRACE_SECONDS = 10
"""How long the other ranks of a failed one have to end by themselves: rank 0 tells the trackers."""
_TIMED_OUT = re.compile(r"time(d )?-?out", re.IGNORECASE)
"""What a collective says to a rank that has waited in vain."""
_LOST_PEER = re.compile(r"time(d )?-?out|connection|closed by peer|reset by peer", re.IGNORECASE)
"""What a rank says whose peers are gone."""


def start_ranks(
    directory: RunDirectory,
    ranks: int,
    lock: int | None,
    secrets: dict[str, Any],
    nodes: Nodes | Hosts | None = None,
    signals: list[int] | None = None,
) -> int:
    """Run `ranks` ranks on this machine, or on each of several hosts, to their end; return the child's exit code.

    Signals that arrive meanwhile are forwarded, and appended to `signals`. Those that this thread had blocked before arrive
    first: a run of this process alone does not start then.
    """
    nodes = nodes or Nodes()
    agents: dict[str, RemoteAgent] = {}
    children: list[Any] = []
    seen = [] if signals is None else signals
    with forwarded_signals(lambda: children, "at the next step", seen) as given_up:
        if seen and (isinstance(nodes, Hosts) or nodes.count == 1):
            return -seen[0]
        if isinstance(nodes, Hosts):
            variables = {SECRETS_VARIABLE: json.dumps(secrets)} if secrets else {}
            agents = nodes.start(directory.run_file, ranks, variables)
            children += agents.values()
        else:
            children.append(open_ranks(directory, ranks, lock, secrets, nodes=nodes))
        for child in children if seen else ():  # one came before there was anybody to pass it on to
            child.kill() if given_up else child.send_signal(seen[0])
        codes = _outlast(agents, directory) if agents else [children[0].wait()]
    code = next((code for code in codes if code), 0)
    if code and nodes.count > 1 and nodes.index == 0 and not given_up:
        _hear_from_other_nodes(directory, nodes.count)
    return -signal.SIGINT if given_up else code


@dataclass(frozen=True)
class Place:
    """What of this machine a run may use; all of it by default."""

    gpus: tuple[str, ...] = ()
    """Devices as CUDA_VISIBLE_DEVICES names them; all that are visible when empty."""
    cores: int | None = None
    """Cores to share among the ranks; those that this process may use when None."""
    output: IO[bytes] | None = None
    """Where the ranks print; the terminal when None."""


def open_ranks(
    directory: RunDirectory,
    ranks: int,
    lock: int | None,
    secrets: dict[str, Any],
    place: Place | None = None,
    nodes: Nodes | None = None,
) -> subprocess.Popen[bytes]:
    """Start the ranks of this machine and return the child that holds them.

    The child is never without an answer to `SIGNALS`: it is born with them blocked, and takes those that came in the
    meantime once it waits for them. SIGKILL ends it at any time.
    """
    place, nodes = place or Place(), nodes or Nodes()
    alone = ranks == 1 and nodes.count == 1
    module = ["arctic_hydra.worker"] if alone else ["arctic_hydra.launch"]
    command = [sys.executable, "-u", "-m", *module, str(directory.run_file), str(ranks), *nodes.arguments()]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    if place.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(place.gpus)
    if secrets:
        environment[SECRETS_VARIABLE] = json.dumps(secrets)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)  # leftovers of a launcher around this process would be taken for ours
    # Spinning at OpenMP's barriers makes a step on the CPU up to 15 times slower as soon as another process wants a core.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cores = place.cores or len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    # The child inherits the lock: it is held until the last of both is gone. In a session of its own it hears of Ctrl-C
    # from this process only, so that a signal arrives once.
    with blocked_signals():
        return subprocess.Popen(
            command,
            env=environment,
            pass_fds=() if lock is None else (lock,),
            stdin=subprocess.DEVNULL,
            stdout=place.output,
            stderr=subprocess.STDOUT if place.output else None,
            start_new_session=True,
        )


def _outlast(agents: dict[str, RemoteAgent], directory: RunDirectory) -> list[int]:
    """Wait for the agents of a hostfile, by host, and return their exit codes.

    Once one has failed, the others end by themselves; those that wait for it at the meeting, or for too long, are let go.
    """
    end = float("inf")
    while None in (codes := [agent.poll() for agent in agents.values()]):
        time.sleep(0.1)
        failed = [index for index, code in enumerate(codes) if code]
        if failed and end == float("inf"):
            met = directory.meeting_file.exists()
            end = time.monotonic() + (2 * GRACE_SECONDS if met else 0)
            [first, *_] = failed
            if not met and not directory.node_file(first).exists():
                message = (
                    f"hostfile: {list(agents)[first]}: ended with exit code {codes[first]} before the machines had met; what the "
                    "remote shell or the agent there said stands above"
                )
                write_error(directory.path, -first, "NodeUnreachable", message)
        if time.monotonic() >= end:
            for agent in agents.values():
                agent.kill()
    return [code for code in codes if code is not None]


def _hear_from_other_nodes(directory: RunDirectory, count: int) -> None:
    """Wait until the agents of the other machines have said how they ended: the cause may be there."""
    if not directory.meeting_file.exists():
        return  # they never worked together
    end = time.monotonic() + GRACE_SECONDS + 10
    silent = list(range(1, count))
    while silent and time.monotonic() < end:
        time.sleep(0.1)
        silent = [index for index in silent if not directory.node_file(index).exists()]
    first = next(iter(directory.errors()), None)
    if first and not _LOST_PEER.search(first["message"]):
        return  # a cause of its own
    for index in silent:
        message = (
            f"node {index}: its agent is gone without a word; most often the machine failed, or something killed all of "
            f"its processes"
        )
        write_error(directory.path, -index, "NodeDied", message)


class FailureWatch:
    """Ends the ranks that do not end by themselves once one of them has failed, and says where they stood.

    Torch's agent sends SIGTERM, which a rank holds back until its step is over, and waits half a minute.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.stalled: dict[int, str] = {}
        """The Python stacks of each rank that had to be killed, by rank."""
        self._directory = directory
        self._stale = directory.error_files()  # of an earlier start, where the first node has not yet removed them
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failures", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while self._directory.error_files() <= self._stale:
            if self._over.wait(0.2):
                return
        if self._over.wait(GRACE_SECONDS):
            return
        ranks = _living_ranks()
        logs = {rank: self._directory.path / "logs" / f"rank{rank}.log" for rank in ranks}
        lengths = {rank: log.stat().st_size if log.exists() else 0 for rank, log in logs.items()}
        for process in ranks.values():
            _send(process, signal.SIGUSR1)  # `log.start` has it write the stacks
            _send(process, signal.SIGCONT)  # a frozen process would not
        _wait_for_stacks(logs, lengths)
        for rank, process in ranks.items():
            _send(process, signal.SIGKILL)
            log = logs[rank]
            self.stalled[rank] = log.read_bytes()[lengths[rank] :].decode(errors="replace") if log.exists() else ""


def _wait_for_stacks(logs: dict[int, Path], lengths: dict[int, int], patience_seconds: float = 5.0) -> None:
    """Wait until each rank's log holds stacks beyond its former length; a process that was frozen needs a moment."""
    end = time.monotonic() + patience_seconds
    while time.monotonic() < end:
        added = [log.read_bytes()[lengths[rank] :] if log.exists() else b"" for rank, log in logs.items()]
        if all(b"most recent call first" in text for text in added):
            time.sleep(0.2)  # the first thread's stack is there; let the others follow
            return
        time.sleep(0.1)


def _send(process: Any, number: signal.Signals) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):  # once it goes on, it may end by itself
        process.send_signal(number)


def _living_ranks() -> dict[int, Any]:
    """Return the ranks that this agent started and that still run, by rank."""
    import psutil

    found: dict[int, Any] = {}
    for child in psutil.Process().children():
        with suppress(psutil.Error, KeyError):
            if child.status() != psutil.STATUS_ZOMBIE:
                found[int(child.environ()["RANK"])] = child
    return found


def explain(directory: RunDirectory, failures: dict[int, int], stalled: dict[int, str]) -> None:
    """Leave an error for ranks that ended without one: what their peers report is only that these were gone.

    `failures` holds exit codes by rank, in the order in which the agent saw them.
    """
    told = {error["rank"] for error in directory.errors()}
    died = [rank for rank, code in failures.items() if code and rank not in told and rank not in stalled]
    for rank in died[:1]:  # the agent kills the rest itself
        code = failures[rank]
        how = (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} without a word"
        )
        hint = "; most often the kernel does that when memory runs out (see dmesg)" if code == -signal.SIGKILL else ""
        write_error(directory.path, rank, "RankDied", f"rank {rank} {how}{hint}")
    first = next(iter(directory.errors()), None)
    if first and not _TIMED_OUT.search(first["message"]):
        return  # what went wrong has been said: those that had to be killed were waiting for the rank that said it
    for rank, stacks in stalled.items():
        message = (
            f"rank {rank} stalled: the others waited trainer.collective_timeout_seconds for it, and it was killed. "
            "Where it stood:\n" + (stacks.strip() or "(it wrote no stack)")
        )
        write_error(directory.path, rank, "RankStalled", message)


class SignalRelay:
    """Passes signals on to the ranks of this machine, which agree with all others on when to stop.

    The agent holds signals back from its own threads, and its children inherit that: no moment exists in which a signal
    would kill a rank. Several arrivals (from a launcher, and along a process tree) do no harm.
    """

    def __init__(self, directory: RunDirectory, nodes: Nodes) -> None:
        self._directory = directory
        self._nodes = nodes
        block_signals()
        threading.Thread(target=self._take, name="signals", daemon=True).start()

    def relay(self, number: int) -> None:
        """Send a signal to every rank; this process ends by it where the ranks have not been started.

        With several machines their ranks may be there already, waiting for these: these get a moment to appear.
        """
        end = time.monotonic() + (GRACE_SECONDS if self._nodes.count > 1 else 0)
        while not (ranks := _living_ranks()) and not self._directory.result_file.exists():
            if time.monotonic() >= end:
                self._directory.leave_node(self._nodes.index, -number)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
                os.kill(os.getpid(), number)
            time.sleep(0.1)
        for process in ranks.values():
            _send(process, signal.Signals(number))

    def read(self, commands: Any) -> None:
        """Take the names of signals from `commands`, a line each; its end means that whoever started this is gone."""
        for line in commands:
            self.relay(signal.Signals[line.strip()])
        os.kill(os.getpid(), signal.SIGKILL)  # the ranks die with it

    def _take(self) -> None:
        while True:
            self.relay(signal.sigwait(SIGNALS))


def main() -> int:
    """Hold the elastic agent of one node; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m arctic_hydra.launch", description="Start the ranks of one machine."
    )
    parser.add_argument("run_file", type=Path)
    parser.add_argument("ranks", type=int)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--rendezvous", default="localhost:0")
    parser.add_argument("--remote", action="store_true", help="take the environment and signals from standard input")
    options = parser.parse_args()
    directory = RunDirectory(options.run_file.parent)
    relay = SignalRelay(directory, Nodes(options.nnodes, options.node_rank, options.rendezvous))
    if options.remote:
        os.environ.update(json.loads(sys.stdin.readline()))
        threading.Thread(target=relay.read, args=(sys.stdin,), name="commands", daemon=True).start()
    else:
        die_with_parent()
    code = _hold_agent(options, directory)
    directory.leave_node(options.node_rank, code)
    return code


def _hold_agent(options: argparse.Namespace, directory: RunDirectory) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    store: Any = None
    if options.nnodes > 1:
        nodes = Nodes(options.nnodes, options.node_rank, options.rendezvous)
        try:
            # Held until the end: the first machine's is the one that torch's rendezvous and the ranks share.
            store = meet(nodes, f"{directory.path.parent.name}/{directory.path.name} on {options.ranks} rank(s)")
        except ArcticHydraError as error:
            _tell(directory, options.node_rank, error)
            return error.exit_code
        if options.node_rank == 0:
            directory.meeting_file.parent.mkdir(exist_ok=True)
            directory.meeting_file.touch()
    logging.disable(logging.CRITICAL)  # what failed is said in our own words, with the traceback
    static = options.nnodes > 1
    launch_config = LaunchConfig(
        min_nodes=options.nnodes,
        max_nodes=options.nnodes,
        nproc_per_node=options.ranks,
        run_id=directory.path.name,
        # With the static backend the first machine's agent holds the store, and ranks are numbered in the nodes' order.
        rdzv_backend="static" if static else "c10d",
        rdzv_endpoint=options.rendezvous,
        rdzv_configs={"rank": options.node_rank, "timeout": RENDEZVOUS_SECONDS} if static else {},
        max_restarts=0,
        monitor_interval=0.1,
        # Torch would handle those of the relay too, and an agent that ends by one of them would fail instead.
        signals_to_handle="SIGQUIT",
    )
    os.environ[PARENT_VARIABLE] = str(os.getpid())  # for the ranks
    watch = FailureWatch(directory)
    try:
        elastic_launch(launch_config, sys.executable)("-u", "-m", "arctic_hydra.worker", str(options.run_file))
    except ChildFailedError as error:
        watch.close()
        failures = {rank: failure.exitcode for rank, failure in error.failures.items()}
        explain(directory, failures, watch.stalled)
        return next((code for code in failures.values() if code > 0), 1)
    del store
    return 0


def _tell(directory: RunDirectory, index: int, error: ArcticHydraError) -> None:
    """Leave an error where the first machine's command looks for it; those of other machines look at no files."""
    if index == 0:
        write_error(directory.path, 0, type(error).__name__, str(error))
    else:
        print_error(error)


if __name__ == "__main__":
    raise SystemExit(main())
