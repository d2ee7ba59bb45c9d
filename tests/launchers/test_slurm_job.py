"""When a job of SLURM requeues itself."""

from __future__ import annotations

import signal

import pytest
from hydra_plugins.arctic_hydra import _slurm_job
from hydra_plugins.arctic_hydra._slurm_job import RunJob

from arctic_hydra.sweep import slurm


@pytest.mark.parametrize(
    ("signals", "is_preempted", "expected"),
    [
        ([signal.SIGUSR2], False, True),
        ([signal.SIGTERM], True, True),
        ([signal.SIGTERM], False, False),
        ([], True, False),
    ],
    ids=["time limit", "preempted", "scancel", "stopped by itself"],
)
def test_a_job_resumes_after_a_time_limit_or_a_preemption_and_not_after_scancel(
    signals, is_preempted, expected, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "preempted", lambda job_id: is_preempted)
    assert _slurm_job._should_requeue(signals) == expected


def test_a_cluster_that_does_not_answer_counts_as_scancel(monkeypatch, capsys):
    def fail(job_id):
        raise slurm.SlurmError("scontrol gave no answer")

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "preempted", fail)
    assert not _slurm_job._should_requeue([signal.SIGTERM])
    assert "scontrol gave no answer" in capsys.readouterr().out


def test_requeues_are_counted_and_limited(capsys):
    job = RunJob("run", 1, max_requeues=1)
    again = job.checkpoint().function
    assert again == RunJob("run", 1, max_requeues=1, requeues=1)
    again._requeue()
    assert "hydra.launcher.max_requeues" in capsys.readouterr().out
