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
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from arctic_hydra.record import RunDirectory
from arctic_hydra.stopping import SIGNALS
from arctic_hydra.worker import SECRETS_VARIABLE, die_with_parent, write_error

SHUTDOWN_SECONDS = 600
"""How long the agent lets ranks save after it forwarded a signal, before it kills them."""
GRACE_SECONDS = 10
"""How long the other ranks of a failed one have to end by themselves: rank 0 tells the trackers."""


def start_ranks(directory: RunDirectory, ranks: int, lock: int, secrets: dict[str, Any]) -> int:
    """Run the ranks to their end and return the child's exit code; signals that arrive meanwhile are forwarded."""
    child = open_ranks(directory, ranks, lock, secrets, Place())
    with forwarded_signals(child) as given_up:
        code = child.wait()
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
    directory: RunDirectory, ranks: int, lock: int, secrets: dict[str, Any], place: Place
) -> subprocess.Popen[bytes]:
    """Start the ranks and return the child that holds them."""
    module = ["arctic_hydra.worker"] if ranks == 1 else ["arctic_hydra.launch"]
    command = [sys.executable, "-u", "-m", *module, str(directory.run_file), str(ranks)]
    environment = dict(os.environ)
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
    return subprocess.Popen(
        command,
        env=environment,
        pass_fds=(lock,),
        stdin=subprocess.DEVNULL,
        stdout=place.output,
        stderr=subprocess.STDOUT if place.output else None,
        start_new_session=True,
    )


@contextmanager
def forwarded_signals(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Forward `SIGNALS` to `child` while the context is open; a second interrupt kills it and enters the yielded list."""
    seen: list[float] = []
    given_up: list[int] = []

    def forward(number: int, frame: object) -> None:
        seen.append(time.monotonic())
        if len(seen) == 1:
            name = signal.Signals(number).name
            print(f"{name}: stopping at the next step; interrupt again to end at once", file=sys.stderr, flush=True)
            child.send_signal(number)
        elif number == signal.SIGINT and seen[-1] - seen[0] > 1.0:
            given_up.append(number)
            child.kill()  # ranks below an agent die with it

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield given_up
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class FailureWatch:
    """Ends the ranks that do not end by themselves once one of them has failed, and says where they stood.

    Torch's agent sends SIGTERM, which a rank holds back until its step is over, and waits half a minute.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.stalled: dict[int, str] = {}
        """The Python stacks of each rank that had to be killed, by rank."""
        self._directory = directory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failures", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._directory.errors():
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
    for rank, stacks in stalled.items():
        message = (
            f"rank {rank} stalled: the others waited trainer.collective_timeout_seconds for it, and it was killed. "
            "Where it stood:\n" + (stacks.strip() or "(it wrote no stack)")
        )
        write_error(directory.path, rank, "RankStalled", message)


def main() -> int:
    """Hold the elastic agent of one node; return its exit code."""
    die_with_parent()
    run_file, ranks = sys.argv[1], int(sys.argv[2])
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # what failed is said in our own words, with the traceback
    directory = RunDirectory(Path(run_file).parent)
    launch_config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=Path(run_file).parent.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR2,SIGHUP",
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    watch = FailureWatch(directory)
    try:
        elastic_launch(launch_config, sys.executable)("-u", "-m", "arctic_hydra.worker", run_file)
    except SignalException:
        return 0  # the ranks have said in their files what they did about it
    except ChildFailedError as error:
        watch.close()
        failures = {rank: failure.exitcode for rank, failure in error.failures.items()}
        explain(directory, failures, watch.stalled)
        return next((code for code in failures.values() if code > 0), 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
