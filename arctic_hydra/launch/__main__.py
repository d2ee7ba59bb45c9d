"""The agent of one machine: `python -m arctic_hydra.launch <run.json> <ranks>` holds torch's elastic agent, which starts the ranks.

Agents of several machines meet at the first one's address (`rendezvous`) and see each other's failures in the run's directory.
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

from arctic_hydra.errors import ArcticHydraError, print_error
from arctic_hydra.launch.child import PARENT_VARIABLE, die_with_parent
from arctic_hydra.launch.failures import GRACE_SECONDS, FailureWatch, explain, living_ranks, send_signal
from arctic_hydra.launch.nodes import Nodes
from arctic_hydra.launch.rendezvous import RENDEZVOUS_SECONDS, meet
from arctic_hydra.run_directory import RunDirectory, write_error
from arctic_hydra.stopping import SIGNALS, block_signals


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
        while not (ranks := living_ranks()) and not self._directory.result_file.exists():
            if time.monotonic() >= end:
                self._directory.leave_node(self._nodes.index, -number)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
                os.kill(os.getpid(), number)
            time.sleep(0.1)
        for process in ranks.values():
            send_signal(process, signal.Signals(number))

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
