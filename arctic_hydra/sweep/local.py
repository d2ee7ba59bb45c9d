"""The backend for jobs on this machine, which are child processes of the sweep process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.files.lock_file import LockFile
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


def cancel(sweep: Sweep, jobs: Sequence[SweepJob]) -> int:
    """Ask the jobs to stop; return how many were not signalled, because their process does not hold the run's lock."""
    refused = 0
    for job in jobs:
        if job.submission and (problem := _terminate(job.directory.lock_file, job.submission["pid"])):
            print(f"job {job.number} was not signalled: {problem}")
            refused += 1
    return refused


def stop_controller(sweep: Sweep) -> bool:
    """Send SIGTERM to the sweep process, which forwards it to its jobs and starts no others."""
    if problem := _terminate(sweep.lock_file):
        print(f"the sweep process was not signalled: {problem}")
    return not problem


def _terminate(lock: LockFile, process: int | None = None) -> str | None:
    """Send SIGTERM to the process (by default the one named in the lock) that holds a lock; return why that was not possible.

    Returns None too if nothing holds the lock any more. Raises ConfigError if a process of another machine holds it.
    """
    holder = lock.holder()
    if holder is None:
        return None
    named = lock.process_here(holder)
    if named is None:
        raise ConfigError(f"the sweep runs on another machine ({holder}); cancel it there")
    wanted = named if process is None else process
    if lock.terminate(wanted) or lock.holder() is None:
        return None
    return f"process {wanted} does not hold the lock of {lock.path.parent}, which is in use by {holder}"


def resubmit(sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
    """Rerun the jobs on this machine, and wait for them."""
    work = []
    for job in jobs:
        try:
            work.append((job, pool.restarter(job)))
        except ArcticHydraError as error:
            job.cannot_run(error)
    sweep.save()
    ranks = [str(job.directory.record().get("ranks", 1)) for job, _ in work]
    server = pool.fork_server() if "1" in ranks else None
    slots = pool.Slots.plan(None, ranks)
    # No more at a time than when they were started, since more may not fit into memory.
    most = min(
        (job.submission["slots"] for job, _ in work if job.submission and "slots" in job.submission), default=None
    )
    if most is not None and most < slots.count:
        slots = pool.Slots(max(1, most), slots.gpus[: max(1, most)])
    try:
        pool.Pool(sweep, slots, fork_server=server).run(work)
    finally:
        if server:
            server.close()
