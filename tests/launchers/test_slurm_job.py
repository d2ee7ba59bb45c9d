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
    monkeypatch.setattr(slurm, "cancelled", fail)
    assert not _slurm_job._should_requeue([signal.SIGTERM])
    assert "cannot distinguish a preemption from scancel: scontrol gave no answer" in capsys.readouterr().out
    assert _slurm_job._should_requeue([signal.SIGUSR2, signal.SIGTERM]), "most likely the limit that was announced"


@pytest.mark.parametrize(
    ("shown", "requeues"),
    [
        ("JobState=COMPLETING Reason=None", False),  # after scancel, while the save that SIGUSR2 asked for goes on
        ("JobState=COMPLETING Reason=TimeLimit", True),
        ("JobState=RUNNING Reason=None", True),
    ],
)
def test_a_job_that_is_cancelled_while_it_saves_for_its_time_limit_is_not_requeued(shown, requeues, monkeypatch):
    """As SLURM 22.05 shows it; `scontrol requeue` would run a cancelled job again."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "command", lambda *words: f"JobId=7 {shown} Dependency=(null)")
    assert _slurm_job._should_requeue([signal.SIGUSR2, signal.SIGTERM]) == requeues


def test_requeues_are_counted_and_limited(capsys):
    job = RunJob("run", 1, max_requeues=1)
    again = job.checkpoint().function
    assert again == RunJob("run", 1, max_requeues=1, requeues=1)
    again._requeue()
    assert "hydra.launcher.max_requeues" in capsys.readouterr().out
