"""Starting ranks: a plain child for one, a child that holds torch's elastic agent for several.

The composing process calls `start_ranks` and stays light; `python -m arctic_hydra.launch <run.json> <ranks>` is the
agent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arctic_hydra.record import RunDirectory
from arctic_hydra.stopping import SIGNALS
from arctic_hydra.worker import SECRETS_VARIABLE, die_with_parent

SHUTDOWN_SECONDS = 600
"""How long the agent lets ranks save after it forwarded a signal, before it kills them."""


def start_ranks(directory: RunDirectory, ranks: int, lock: int, secrets: dict[str, Any]) -> int:
    """Run the ranks to their end and return the child's exit code; signals that arrive meanwhile are forwarded."""
    module = ["arctic_hydra.worker"] if ranks == 1 else ["arctic_hydra.launch"]
    command = [sys.executable, "-u", "-m", *module, str(directory.run_file), str(ranks)]
    environment = dict(os.environ)
    if secrets:
        environment[SECRETS_VARIABLE] = json.dumps(secrets)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)  # leftovers of a launcher around this process would be taken for ours
    # Spinning at OpenMP's barriers makes a step on the CPU up to 15 times slower as soon as another process wants a core.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (len(os.sched_getaffinity(0))) // ranks)))
    with forwarded_signals() as children:
        # The child inherits the lock: it is held until the last of both is gone.
        child = subprocess.Popen(command, env=environment, pass_fds=(lock,), stdin=subprocess.DEVNULL)
        children.append(child)
        return child.wait()


@contextmanager
def forwarded_signals() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Forward `SIGNALS` to the children in the yielded list while the context is open."""
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    """Hold the elastic agent of one node; return its exit code."""
    die_with_parent()
    run_file, ranks = sys.argv[1], int(sys.argv[2])
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the composing process reports failures
    launch_config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=Path(run_file).parent.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR2",
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(launch_config, sys.executable)("-u", "-m", "arctic_hydra.worker", run_file)
    except SignalException:
        return 0  # the ranks have said in their files what they did about it
    except ChildFailedError as error:
        failures = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in failures if code > 0), 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
