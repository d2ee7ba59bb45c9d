"""What SLURM runs: one task per machine, which holds the agent of that machine's ranks.

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
"""Environment variable of a submission: what redaction hid, by run directory and dotted key."""
LOCK_SECONDS = 60
"""How long a job waits for the lock of its run's directory: a job put back into the queue may come before the last of
its former processes is gone, and a shared file system may take its time to notice."""


@dataclass(frozen=True)
class RunJob:
    """One run as a job: picklable, and callable on every machine of its allocation."""

    run_dir: str
    ranks_per_node: int
    max_requeues: int
    requeues: int = 0
    """How often this job has put itself back into the queue."""

    def __call__(self) -> None:
        """Start this machine's ranks; the first machine's task leaves with the run's exit code.

        Signals of SLURM's that came before, while `_slurm_start` imported its libraries, stop the run as later ones do.
        """
        from submitit.slurm.slurm import SlurmJobEnvironment

        from arctic_hydra.launch import ranks
        from arctic_hydra.launch.nodes import Nodes
        from arctic_hydra.run_directory import RunDirectory

        environment = SlurmJobEnvironment()
        count, index = environment.num_nodes, environment.node
        # One port per job: jobs that share a machine have different numbers.
        place = f"{environment.hostnames[0]}:{10_000 + int(environment.raw_job_id) % 20_000}"
        nodes = Nodes(count, index, place) if count > 1 else Nodes()
        directory = RunDirectory(Path(self.run_dir))
        secrets = json.loads(os.environ.get(SECRETS_VARIABLE, "{}")).get(self.run_dir, {})
        if index > 0:
            # Ends well whatever happened: the first machine's task says how the run ended, and srun would end that task
            # for a failed one of its own accord on some clusters.
            ranks.start_ranks(directory, self.ranks_per_node, None, secrets, nodes)
            return
        raise SystemExit(self._lead(directory, nodes, secrets))

    def checkpoint(self) -> Any:
        """Return what runs when the job has been put back into the queue: submitit asks for it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, requeues=self.requeues + 1))

    def _lead(self, directory: Any, nodes: Any, secrets: dict[str, Any]) -> int:
        from arctic_hydra import run_directory
        from arctic_hydra.launch import job, ranks

        lock = directory.lock(LOCK_SECONDS)
        if directory.record().get("status") == run_directory.FINISHED:
            print(f"finished already: {directory.path}", flush=True)
            return 0
        directory.forget_outcome()
        directory.update_record(
            status=run_directory.RUNNING, host=socket.gethostname(), requeues=self.requeues, started=time.time()
        )
        signals: list[int] = []
        code = ranks.start_ranks(directory, self.ranks_per_node, lock, secrets, nodes, signals)
        ending = job.conclude(directory, code, asked_to_stop=bool(signals))
        result = ending.result or {}
        print(ending.details or f"{ending.status} at step {result['step']} {result['stop_reason']}", flush=True)
        if ending.status == run_directory.STOPPED and _ought_to_resume(signals):
            self._requeue()
        return ending.exit_code

    def _requeue(self) -> None:
        """Put this job back into the queue and end; return where that may not or cannot be done."""
        if self.requeues >= self.max_requeues:
            print(
                f"not put back into the queue: that has been done {self.requeues} times (hydra.launcher.max_requeues)"
            )
            return
        handler = signal.getsignal(signal.SIGUSR2)
        assert callable(handler), "submitit installs its handler before it calls a job"
        try:
            handler(signal.SIGUSR2, None)  # calls `checkpoint`, then `scontrol requeue`, and exits
        except (subprocess.SubprocessError, OSError) as error:
            print(f"could not be put back into the queue: {error}; the same command resumes", flush=True)


def _ought_to_resume(signals: list[int]) -> bool:
    """Whether SLURM stopped this job for reasons of its own.

    SIGUSR2 announces the time limit, and a preemption on some clusters. SIGTERM comes with scancel, and with a preemption
    on others: there SLURM puts back only jobs that it had to kill at the end of their grace time.
    """
    from arctic_hydra.sweep import slurm

    if signal.SIGUSR2 in signals:
        return True
    try:
        return signal.SIGTERM in signals and slurm.preempted(os.environ["SLURM_JOB_ID"])
    except slurm.SlurmError as error:
        print(f"cannot tell a preemption from scancel: {error}", flush=True)
        return False
