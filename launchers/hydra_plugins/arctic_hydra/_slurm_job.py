"""The job that SLURM runs: one task per machine, which starts the ranks of that machine.

submitit unpickles a `RunJob` and calls it. Nothing is composed here: the ranks read the `run.json` of the submission.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SECRETS_VARIABLE = "ARCTIC_HYDRA_JOB_SECRETS"
"""Environment variable of a submission with the redacted values, by run directory and dotted key."""
LOCK_SECONDS = 60
"""How long a job waits for the lock of its run's directory: a requeued job may start before the last process of its
previous execution has exited, and shared file systems release locks late."""


@dataclass(frozen=True)
class RunJob:
    """One run as a picklable job, called on every machine of its allocation."""

    run_dir: str
    ranks_per_node: int
    max_requeues: int
    requeues: int = 0
    """How often this job has been requeued."""

    def __call__(self) -> None:
        """Start the ranks of this machine; the task of the first machine exits with the run's exit code.

        Signals of SLURM that arrived earlier, while `_slurm_start` imported its libraries, stop the run like later ones.
        """
        from submitit.slurm.slurm import SlurmJobEnvironment

        from arctic_hydra.launch import ranks
        from arctic_hydra.launch.nodes import Nodes
        from arctic_hydra.run_directory import FINISHED, RunDirectory

        environment = SlurmJobEnvironment()
        count, index = environment.num_nodes, environment.node
        # One port per job: jobs that share a machine have different ids.
        rendezvous = f"{environment.hostnames[0]}:{10_000 + int(environment.raw_job_id) % 20_000}"
        nodes = Nodes(count, index, rendezvous) if count > 1 else Nodes()
        directory = RunDirectory(Path(self.run_dir))
        secrets = json.loads(os.environ.get(SECRETS_VARIABLE, "{}")).get(self.run_dir, {})
        if index > 0 and directory.record().get("status") == FINISHED:
            return  # the task of the first machine says so and starts nothing
        if index > 0:
            # Always exits with 0: the task of the first machine reports how the run ended, and on some clusters srun
            # would kill that task after a failed one.
            ranks.start_ranks(directory, self.ranks_per_node, None, secrets, nodes)
            return
        raise SystemExit(self._run_on_first_node(directory, nodes, secrets))

    def checkpoint(self) -> Any:
        """Return the job to run after a requeue; called by submitit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, requeues=self.requeues + 1))

    def _run_on_first_node(self, directory: Any, nodes: Any, secrets: dict[str, Any]) -> int:
        from arctic_hydra import run_directory
        from arctic_hydra.files import code_file
        from arctic_hydra.launch import job, ranks

        lock = directory.lock(LOCK_SECONDS)
        if directory.record().get("status") == run_directory.FINISHED:
            print(f"finished already: {directory.path}", flush=True)
            return 0
        directory.clear_result()
        before = directory.record()
        if change := code_file.change_since(before.get("code")):
            print(change, flush=True)
        directory.update_record(
            **code_file.record_entry(before),
            status=run_directory.RUNNING,
            host=socket.gethostname(),
            requeues=self.requeues,
            started=time.time(),
        )
        print(f"run      {directory.path}", flush=True)
        signals: list[int] = []
        code = ranks.start_ranks(directory, self.ranks_per_node, lock, secrets, nodes, signals)
        ending = job.record_ending(directory, code, asked_to_stop=bool(signals))
        result = ending.result or {}
        print(ending.details or f"{ending.status} at step {result['step']} {result['stop_reason']}", flush=True)
        if ending.status == run_directory.STOPPED and _should_requeue(signals):
            self._requeue()
        return ending.exit_code

    def _requeue(self) -> None:
        """Requeue this job and exit; returns if the limit is reached or requeuing fails."""
        if self.requeues >= self.max_requeues:
            print(f"not requeued: the limit of {self.requeues} requeues is reached (hydra.launcher.max_requeues)")
            return
        from submitit.slurm.slurm import SlurmJobEnvironment

        handler = signal.getsignal(SlurmJobEnvironment._usr_sig())
        assert callable(handler), "submitit installs its handler before it calls a job"
        try:
            handler(signal.SIGUSR2, None)  # calls `checkpoint`, then `scontrol requeue`, and exits
        except (subprocess.SubprocessError, OSError) as error:
            print(f"cannot requeue: {error}; start the run again to resume it", flush=True)


def _should_requeue(signals: list[int]) -> bool:
    """Whether the job was stopped by a time limit or a preemption, and not by scancel.

    SIGUSR2 announces the time limit, and on some clusters a preemption. SIGTERM is sent at the limit, by scancel, and by a
    preemption on other clusters, where SLURM requeues only jobs that it had to kill at the end of their grace time.
    """
    from arctic_hydra.sweep import slurm

    if signal.SIGTERM not in signals:
        return signal.SIGUSR2 in signals
    at_limit, job_id = signal.SIGUSR2 in signals, os.environ["SLURM_JOB_ID"]
    try:
        return not slurm.cancelled(job_id) if at_limit else slurm.preempted(job_id)
    except slurm.SlurmError as error:
        print(f"cannot distinguish {'a time limit' if at_limit else 'a preemption'} from scancel: {error}", flush=True)
        return at_limit
