"""The backend for jobs on this machine, which are child processes of the sweep process."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from arctic_hydra.errors import ConfigError
from arctic_hydra.sweep import pool
from arctic_hydra.sweep.directory import RUNNING, BackendState, Sweep, SweepJob


def backend_states(jobs: Sequence[SweepJob]) -> list[BackendState]:
    """Return the state of each job: it runs while its directory is locked, which its last process releases."""
    return [BackendState(RUNNING if job.directory.holder() else None) for job in jobs]


def logs(job: SweepJob) -> list[Path]:
    """Return the logs of the ranks, then the file with their terminal output."""
    folder = Path(job.run_dir) / "logs"
    ranks, terminal = sorted(folder.glob("rank*.log")), folder / pool.TERMINAL_LOG
    return [*ranks, terminal] if terminal.exists() else ranks


def cancel(sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
    """Ask the jobs to stop."""
    running = [(job.directory.holder(), job.submission) for job in jobs]
    for holder, submission in running:
        if holder and submission and _process(holder):
            _terminate(submission["pid"])


def stop_controller(sweep: Sweep) -> None:
    """Send SIGTERM to the sweep process, which forwards it to its jobs and starts no others."""
    if controller := sweep.owner():
        _terminate(_process(controller))


def _terminate(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)


def _process(holder: str) -> int:
    """Return the process id in a lock's text; raises ConfigError for a process of another machine."""
    match = re.match(r"process (\d+) on (.+), since", holder)
    if match is None or match[2] != socket.gethostname():
        raise ConfigError(f"the sweep runs on another machine ({holder}); cancel it there")
    return int(match[1])


def resubmit(sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
    """Rerun the jobs on this machine, and wait for them."""
    ranks = [str(job.directory.record().get("ranks", 1)) for job in jobs]
    pool.Pool(sweep, pool.Slots.plan(None, ranks)).run([(job, pool.restarter(job)) for job in jobs])
