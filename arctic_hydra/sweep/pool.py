"""Runs jobs on this machine in slots, each job in its own processes and on its own GPUs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from subprocess import Popen
from typing import Any

from arctic_hydra.distributed import count_gpus
from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.files import code_file
from arctic_hydra.human_numbers import quantity
from arctic_hydra.launch.fork_server import ForkedRank, ForkServer
from arctic_hydra.launch.job import Job, record_ending
from arctic_hydra.launch.ranks import MachineShare, open_ranks, rank_environment
from arctic_hydra.run_directory import LOCK_GRACE_SECONDS, RunDirectory, write_error
from arctic_hydra.stopping import ask_to_stop, forwarded_signals, one_stop
from arctic_hydra.sweep.directory import PRUNED, RUNNING, Sweep, SweepJob
from arctic_hydra.sweep.live_table import LiveTable
from arctic_hydra.sweep.tail import Tail

POLL_SECONDS = 0.1
TERMINAL_LOG = "terminal.log"
"""File in a job's `logs/` with the output of its ranks, unless it goes to the terminal."""
MOST_SLOTS = 4096
"""Each job of a slot is at least one process."""

Starter = Callable[[MachineShare], "Started | None"]
"""Starts a job on a part of this machine; returns None if the run is finished already."""


@dataclass(frozen=True)
class Slots:
    """How many jobs run at a time, and on which GPUs."""

    count: int
    gpus: list[list[str]] = field(default_factory=list)
    """The devices of each slot, as CUDA_VISIBLE_DEVICES names them; empty without GPUs."""

    @property
    def ranks(self) -> int | None:
        """The meaning of `ranks=auto` in a slot: one per GPU; None without GPUs."""
        return len(self.gpus[0]) if self.gpus else None

    @classmethod
    def plan(cls, count: int | None, ranks: Sequence[str]) -> Slots:
        """Return the slots for jobs that request `ranks` (numbers or `auto`); raises ConfigError if they do not fit.

        By default there are as many slots as the GPUs allow, with one GPU each unless `ranks` requests more; without GPUs,
        one slot per two cores.
        """
        wanted = max((int(item) for item in ranks if item != "auto"), default=1)
        gpus = _visible_gpus()
        if count is not None and not 1 <= count <= MOST_SLOTS:
            raise ConfigError(f"hydra.launcher.slots: got {count}, expected 1 or more, at most {MOST_SLOTS:,}")
        if not gpus:
            return cls(count or max(1, len(os.sched_getaffinity(0)) // 2 // wanted))
        if wanted > len(gpus):
            raise ConfigError(
                f"ranks: got {wanted}, but this machine has {quantity(len(gpus), 'GPU')}; pass ranks={len(gpus)} or fewer"
            )
        count = count or max(1, len(gpus) // wanted)
        size = len(gpus) // count if "auto" in ranks else wanted
        if size < wanted or count * size > len(gpus):
            raise ConfigError(
                f"hydra.launcher.slots: got {count} with {wanted} GPUs each, but this machine has {len(gpus)}; "
                f"pass hydra.launcher.slots={len(gpus) // wanted} or fewer, or lower ranks"
            )
        return cls(count, [gpus[slot * size : (slot + 1) * size] for slot in range(count)])


def _visible_gpus() -> list[str]:
    count = count_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(index) for index in range(count)] if visible is None else visible.split(",")[:count]


def fork_server() -> ForkServer | None:
    """Return a server for the jobs of one rank; None with GPUs, since the CUDA driver does not support forks."""
    return ForkServer() if count_gpus() == 0 else None


@dataclass
class Started:
    """The running ranks of a job, and the directory that this process has locked."""

    child: Popen[bytes] | ForkedRank
    directory: RunDirectory


def starter(job: Job) -> Starter:
    """Return a function that starts a composed job with the steps of a single run."""

    def start(share: MachineShare) -> Started | None:
        lock = job.write_unless_finished()
        if lock is None:
            return None
        with _released_on_error(job.directory):
            child = open_ranks(job.directory, job.run.ranks_per_node, lock, job.secrets(), share)
        return Started(child, job.directory)

    return start


def restarter(entry: SweepJob) -> Starter:
    """Return a function that starts a job again from its `run.json`, without composing it; raises the errors of `reread`."""

    directory, job = entry.directory, entry.reread()

    def start(share: MachineShare) -> Started:
        data, lock = job.data_digest(), directory.lock(LOCK_GRACE_SECONDS)
        with _released_on_error(directory):
            directory.clear_result()
            if change := job.code_change():
                print(change, flush=True)
            directory.update_record(
                status=RUNNING, started=time.time(), data=data, **code_file.record_entry(directory.record())
            )
            child = open_ranks(directory, job.run.ranks_per_node, lock, {}, share)
        return Started(child, directory)

    return start


@contextmanager
def _released_on_error(directory: RunDirectory) -> Iterator[None]:
    """Release the lock of a job that could not be started: a locked directory means a running job."""
    try:
        yield
    except BaseException:
        directory.release()
        raise


@dataclass
class _Running:
    entry: SweepJob
    started: Started
    slot: int
    tail: Tail
    asked_to_stop: bool = False
    """Whether this process asked it to stop, after a signal or because the observer pruned it."""

    def stop(self) -> None:
        """Ask the job to stop at the next step."""
        self.asked_to_stop = True
        ask_to_stop(self.started.child, signal.SIGTERM)


class Pool:
    """Runs jobs until they end; their results are in their records and in the sweep."""

    def __init__(
        self,
        sweep: Sweep,
        slots: Slots,
        observer: Callable[[SweepJob, list[dict[str, Any]]], bool] | None = None,
        *,
        to_terminal: bool = False,
        fork_server: ForkServer | None = None,
    ) -> None:
        """`fork_server` starts the jobs of one rank; new interpreters start the others, and all if it is None."""
        self._sweep = sweep
        self._slots = slots
        self._observer = observer
        self._to_terminal = to_terminal
        self._fork_server = fork_server
        self._running: list[_Running] = []
        self._signals: list[int] = []
        self._killed_by: list[int] = []
        self._error: ConfigError | None = None
        self._table = LiveTable(sweep, live=not to_terminal)

    def run(self, work: Sequence[tuple[SweepJob, Starter]]) -> str:
        """Run the jobs; return why the remaining ones were not started, empty if all were.

        Raises the observer's ConfigError after the running jobs have saved and stopped.
        """
        waiting = list(work)
        forwarding = forwarded_signals(self._children, "the jobs at their next step", self._signals)
        with one_stop(self._signals), forwarding as self._killed_by, self._table, self._stopping_on_error():
            while (waiting and not self._stop_reason) or self._running:
                while waiting and not self._stop_reason and len(self._running) < self._slots.count:
                    self._start(*waiting.pop(0), expects_more=bool(waiting) or self._sweep.kind != "grid")
                for job in list(self._running):
                    self._poll(job)
                self._table.refresh()
                time.sleep(POLL_SECONDS)
        if self._fork_server and self._fork_server.problem:
            print(
                f"note: jobs were started by new interpreters: the process that forks them: {self._fork_server.problem}"
            )
        if self._error:
            raise self._error
        return self._stop_reason

    @contextmanager
    def _stopping_on_error(self) -> Iterator[None]:
        """Let the running jobs save and stop before an error leaves, such as that of a full disk: they end with this process."""
        try:
            yield
        except BaseException:
            for job in self._running:
                with suppress(Exception):
                    job.stop()
            for job in self._running:
                with suppress(Exception):  # the error that leaves is the first one
                    code = job.started.child.wait()
                    record_ending(job.started.directory, code, asked_to_stop=True)
                    job.started.directory.release()
            raise

    @property
    def _stop_reason(self) -> str:
        """Why no further job is started, empty while jobs are started."""
        if self._signals:
            return f"received {signal.Signals(self._signals[0]).name}"
        return str(self._error or "")

    def _children(self) -> list[Popen[bytes] | ForkedRank]:
        return [job.started.child for job in self._running]

    def _start(self, entry: SweepJob, start: Starter, *, expects_more: bool) -> None:
        taken = {job.slot for job in self._running}
        slot = next(number for number in range(self._slots.count) if number not in taken)
        gpus = tuple(self._slots.gpus[slot]) if self._slots.gpus else ()
        cores = max(1, len(os.sched_getaffinity(0)) // self._slots.count)
        try:
            entry.directory.create()  # checks it before anything is written
            log = None if self._to_terminal else entry.directory.path / "logs" / TERMINAL_LOG
            started = start(MachineShare(gpus, cores, log, self._fork_server))
        except (ArcticHydraError, OSError) as error:
            entry.problem = str(error)
            started = None
        if started is None:
            self._sweep.save()
            self._table.job_ended(entry)
            return
        self._running.append(_Running(entry, started, slot, Tail(entry.directory.path / "metrics.jsonl")))
        if self._fork_server and expects_more:  # it gets ready while this job runs
            self._fork_server.start(rank_environment(1, {}, MachineShare(cores=cores)))
        entry.submission = {"kind": "local", "pid": started.child.pid, "gpus": gpus, "slots": self._slots.count}
        self._sweep.save()
        self._table.job_started(entry)
        if self._signals:  # it arrived while the job was starting
            started.child.kill() if self._killed_by else ask_to_stop(started.child, self._signals[0])

    def _poll(self, job: _Running) -> None:
        child = job.started.child
        code = child.poll()
        rows = job.tail.new_rows()
        self._table.job_logged(job.entry, rows)
        try:
            if rows and self._observer and code is None and not self._error and self._observer(job.entry, rows):
                job.entry.mark = PRUNED
                self._sweep.save()
                job.stop()
        except ConfigError as error:
            self._error = error
            for other in self._running:
                other.stop()
        if code is None:
            return
        self._running.remove(job)
        if isinstance(child, ForkedRank) and child.died_with_server:
            message = (
                "the process that forks the jobs of the sweep has ended, and its jobs with it; start the sweep again"
            )
            with suppress(OSError):  # such as a full disk
                write_error(job.started.directory.path, 0, "RankDied", message)
        # Killed on request: stopped, not failed, like a single run.
        code = -signal.SIGINT if code and self._killed_by else code
        record_ending(job.started.directory, code, asked_to_stop=job.asked_to_stop or bool(self._signals))
        job.started.directory.release()
        self._table.job_ended(job.entry)
