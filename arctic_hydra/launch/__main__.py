"""The agent of one machine: `python -m arctic_hydra.launch <run.json> <ranks>` runs torch's elastic agent, which starts the ranks.

The agents of several machines connect at the address of the first one (`rendezvous`), and exchange failures through the
run directory.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from arctic_hydra import display, python_flags, redaction
from arctic_hydra.errors import EXIT_FAILED, ArcticHydraError, print_error
from arctic_hydra.files import code_file
from arctic_hydra.human_numbers import quantity
from arctic_hydra.launch.child import PARENT_VARIABLE, die_with_parent, limit_threads
from arctic_hydra.launch.failures import GRACE_SECONDS, FailureWatch, living_ranks, report_silent_failures, send_signal
from arctic_hydra.launch.nodes import Nodes
from arctic_hydra.launch.rendezvous import RENDEZVOUS_SECONDS, join_rendezvous
from arctic_hydra.run_directory import RunDirectory, write_error
from arctic_hydra.stopping import SIGNALS, block_signals


class SignalRelay:
    """Forwards signals to the ranks of this machine, which agree with all other ranks on the step at which they stop.

    The agent blocks the signals in its own threads, and its children inherit the mask, so a signal never kills a rank.
    Receiving a signal twice (from a launcher and through the process group) is harmless.
    """

    def __init__(self, directory: RunDirectory, nodes: Nodes) -> None:
        self._directory = directory
        self._nodes = nodes
        block_signals()
        threading.Thread(target=self._relay_pending, name="signals", daemon=True).start()

    def relay(self, number: int) -> None:
        """Send a signal to every rank of this machine; end this process by it if no rank has been started.

        With several machines, wait a moment for the ranks: those of other machines may already be waiting for them.
        """
        end = time.monotonic() + (GRACE_SECONDS if self._nodes.count > 1 else 0)
        while not (ranks := living_ranks()) and not self._directory.result_file.exists():
            if time.monotonic() >= end:
                self._directory.record_node_exit(self._nodes.index, -number)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
                os.kill(os.getpid(), number)
            time.sleep(0.1)
        for process in ranks.values():
            send_signal(process, signal.Signals(number))
            send_signal(process, signal.SIGCONT)  # a stopped process handles no signal

    def read_commands(self, commands: Any) -> None:
        """Read signal names from `commands`, one per line; end of file means that the starting process has died."""
        for line in commands:
            self.relay(signal.Signals[line.strip()])
        os.kill(os.getpid(), signal.SIGKILL)  # the ranks die with it

    def _relay_pending(self) -> None:
        while True:
            self.relay(signal.sigwait(SIGNALS))


def main() -> int:
    """Run the elastic agent of one node; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m arctic_hydra.launch", description="Start the ranks of one machine."
    )
    parser.add_argument("run_file", type=Path)
    parser.add_argument("ranks", type=int)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--rendezvous", default="localhost:0")
    parser.add_argument("--remote", action="store_true", help="take the environment and signals from standard input")
    options = parser.parse_args(code_file.take(sys.argv[1:], load=False))
    redaction.protect()
    directory = RunDirectory(options.run_file.parent)
    relay = SignalRelay(directory, Nodes(options.nnodes, options.node_rank, options.rendezvous))
    if options.remote:
        os.environ.update(json.loads(sys.stdin.readline()))
        limit_threads(os.environ, options.ranks)
        threading.Thread(target=relay.read_commands, args=(sys.stdin,), name="commands", daemon=True).start()
    else:
        die_with_parent()
    code = EXIT_FAILED
    try:
        code = _run_agent(options, directory)
    finally:
        directory.record_node_exit(options.node_rank, code)
    return code


def _run_agent(options: argparse.Namespace, directory: RunDirectory) -> int:
    with display.shown(options.node_rank == 0), display.phase("start", transient=True):
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    store: Any = None
    if options.nnodes > 1:
        nodes = Nodes(options.nnodes, options.node_rank, options.rendezvous)
        try:
            # Keep a reference until the end: torch's rendezvous and the ranks use the store of the first machine.
            ranks = quantity(options.ranks, "rank")
            store = join_rendezvous(nodes, f"{directory.path.parent.name}/{directory.path.name} on {ranks}")
        except ArcticHydraError as error:
            _report_error(directory, options.node_rank, error)
            return error.exit_code
        if options.node_rank == 0:
            directory.rendezvous_file.parent.mkdir(exist_ok=True)
            directory.rendezvous_file.touch()
    logging.disable(logging.CRITICAL)  # we report failures ourselves, with the traceback
    static = options.nnodes > 1
    launch_config = LaunchConfig(
        min_nodes=options.nnodes,
        max_nodes=options.nnodes,
        nproc_per_node=options.ranks,
        run_id=directory.path.name,
        # With the static backend, the agent of the first machine hosts the store, and ranks are numbered in node order.
        rdzv_backend="static" if static else "c10d",
        rdzv_endpoint=options.rendezvous,
        rdzv_configs={"rank": options.node_rank, "timeout": RENDEZVOUS_SECONDS} if static else {},
        max_restarts=0,
        monitor_interval=0.1,
        # Torch would also handle the signals of the relay, and an agent that they end would count as failed.
        signals_to_handle="SIGQUIT",
    )
    os.environ[PARENT_VARIABLE] = str(os.getpid())  # for the ranks
    watch = FailureWatch(directory)
    try:
        elastic_launch(launch_config, sys.executable)(
            *python_flags(), "-u", "-m", "arctic_hydra.worker", str(options.run_file), *code_file.arguments()
        )
    except ChildFailedError as error:
        watch.close()
        failures = {rank: failure.exitcode for rank, failure in error.failures.items()}
        report_silent_failures(directory, failures, watch.stalled)
        return next((code for code in failures.values() if code > 0), 1)
    del store
    return 0


def _report_error(directory: RunDirectory, index: int, error: ArcticHydraError) -> None:
    """Report an error: on node 0 as a file that its command reads, on other nodes on standard error."""
    if index == 0:
        write_error(directory.path, 0, type(error).__name__, str(error))
    else:
        print_error(error)


if __name__ == "__main__":
    raise SystemExit(main())
