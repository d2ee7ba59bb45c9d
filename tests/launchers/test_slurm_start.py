"""Signals that SLURM sends while a job loads."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from hydra_plugins.arctic_hydra._slurm_job import RunJob

from arctic_hydra.run_directory import RunDirectory
from tests.command import environment
from tests.launchers.queue import Queue


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 255)], ids=["cancelled", "requeued"]
)
def test_a_signal_of_slurm_s_before_the_job_is_loaded_stops_it(number, code, tmp_path):
    """submitit waits for the file of the job, with no handler yet; SIGUSR2 puts the job back into the queue."""
    from submitit.core.utils import DelayedSubmission

    queue, directory = Queue(tmp_path / "queue"), RunDirectory(tmp_path / "run")
    directory.create()
    variables = {**queue.variables, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "101", "SLURM_JOB_NODELIST": "n1"}
    command = [sys.executable, "-u", "-m", "hydra_plugins.arctic_hydra._slurm_start", str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    while "Loading pickle" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    submission = DelayedSubmission(RunJob(str(directory.path), 1, 1))
    submission.set_timeout(60, 1)
    submission.dump(tmp_path / "unfinished.pkl")
    (tmp_path / "unfinished.pkl").rename(tmp_path / "101_submitted.pkl")  # the job loads it as soon as it exists
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert directory.record()["status"] == "stopped"
    assert not list((directory.path / "logs").glob("*")), "no rank was started"
    assert DelayedSubmission.load(tmp_path / "101_submitted.pkl").function.requeues == (number == signal.SIGUSR2)
