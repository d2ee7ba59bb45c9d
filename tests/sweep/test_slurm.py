"""Jobs in SLURM: lost answers, retries, cancelling, and a queue that does not answer."""

from __future__ import annotations

import json

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.sweep import slurm
from arctic_hydra.sweep.__main__ import main as look_after
from tests.command import ROOT
from tests.launchers.slurm_sweeps import DETACHED, sweeps
from tests.sweep.sweeps import sweep_of


def test_a_job_whose_submission_was_not_recorded_is_cancelled_and_resubmitted(queue, tmp_path, capsys):
    queue.lose_answer(102)
    command = [*DETACHED, "hydra.launcher.max_array_size=2", "seed=1,2,3,4,5"]
    assert main(command) == 1
    [sweep] = sweeps(tmp_path)
    assert [job.submission and job.submission["job_id"] for job in sweep.jobs] == ["101_0", "101_1", None, None, None]
    assert queue.jobs == ["101_0", "101_1", "102_0", "102_1"]
    assert "Socket timed out" in capsys.readouterr().err
    assert main(command) == 0
    assert (
        "102 was submitted by a killed process of this sweep without being recorded: cancelled"
        in capsys.readouterr().out
    )
    assert queue.jobs == ["101_0", "101_1", "103_0", "103_1", "104"]
    [sweep] = sweeps(tmp_path)
    (sweep.path / "sweep.json").write_text((sweep.path / "sweep.json").read_text().replace('"103_0"', '"99_0"'))
    assert main(command) == 0  # the run's own record knows better
    assert len(queue.jobs) == 5


def test_a_retry_records_its_submissions_too(queue, tmp_path, capsys):
    assert main([*DETACHED, "hydra.launcher.max_array_size=1", "seed=1,2"]) == 0
    [sweep] = sweeps(tmp_path)
    assert look_after(["cancel", str(sweep.path)]) == 0
    queue.lose_answer(104)
    result, sbatch = sweep.jobs[0].directory.result_file, queue.folder / "sbatch"
    sbatch.write_text(f'{sbatch.read_text()}echo \'{{"status": "stopped"}}\' > {result}\n')  # a job that starts at once
    assert look_after(["retry", str(sweep.path)]) == 1
    assert "not resubmitted: job 1" in capsys.readouterr().err
    assert result.exists() and [job.record()["status"] for job in sweep.jobs] == ["running", "failed"]
    assert [job.submission["job_id"] for job in sweeps(tmp_path)[0].jobs] == ["103", "102"]
    assert look_after(["retry", str(sweep.path)]) == 75
    assert (queue.jobs, [job.submission["job_id"] for job in sweeps(tmp_path)[0].jobs]) == (
        ["103", "105"],
        ["103", "105"],
    )


def test_the_record_of_a_job_that_has_started_already_is_left_to_it(tmp_path):
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])
    started, queued = [job.directory for job in sweep.jobs]
    for directory in (started, queued):
        directory.create()
    started.lock()
    slurm.record_submissions(sweep, [(job, {"kind": "slurm", "job_id": f"7_{job.number}"}) for job in sweep.jobs])
    assert [job.submission["job_id"] for job in sweep.jobs] == ["7_0", "7_1"]
    assert "submission" not in started.record()
    assert queued.record()["submission"]["job_id"] == "7_1" and queued.holder() is None


def test_a_retry_uses_the_current_data_and_a_job_that_cannot_run_again_fails_alone(queue, tmp_path, capsys):
    row = (ROOT / "arctic_hydra/assets/chat/train_sft.jsonl").read_text().splitlines()[0]
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("{\n")
    command = [*DETACHED, "data=json", "data.sources.json.path=a.jsonl,b.jsonl"]
    assert main(command) == 0
    [sweep] = sweeps(tmp_path)
    assert look_after(["cancel", str(sweep.path)]) == 0
    (tmp_path / "a.jsonl").write_text(f"{row}\n")
    (tmp_path / "b.jsonl").unlink()
    capsys.readouterr()
    assert look_after(["retry", str(sweep.path)]) == 1
    assert "job 1 failed: data.sources.json.path: " in capsys.readouterr().out
    assert queue.jobs == ["102"]
    assert look_after(["cancel", str(sweep.path), "--job", "0"]) == 0  # this queue's jobs do not end otherwise
    sweep.jobs[0].directory.update_record(status="finished")
    (tmp_path / "b.jsonl").write_text(f"{row}\n")
    assert main(command) == 0
    assert "job 0 is finished already" in capsys.readouterr().out and queue.jobs == ["103"]


def test_records_are_shown_while_slurm_does_not_respond(queue, tmp_path, capsys):
    """A finished job without the objective is a failed one, whoever looks."""
    assert main([*DETACHED, "objective=loss", "seed=1,2,3"]) == 0
    [sweep] = sweeps(tmp_path)
    for job, row in zip(sweep.jobs, ({"step": 1, "loss": 2.0}, {"step": 1, "eval/loss": 2.0}), strict=False):
        (job.directory.path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        job.directory.update_record(status="finished")
    queue.go_away()
    for command in ("status", "summary"):
        capsys.readouterr()
        assert look_after([command, str(sweep.path)]) == 1
        output = capsys.readouterr().out
        assert [line.split()[1] for line in output.splitlines() if line.startswith("  ")][:3] == [
            "finished",
            "failed",
            "unknown",
        ]
        assert "job 1 failed: objective: got loss, but the run logged no such metric; it logged eval/loss" in output
        assert (
            "job 2 unknown: running according to its record; cannot query the queue: squeue: slurm_load_jobs" in output
        )
        assert "best: job 0" in output


def test_jobs_cancelled_before_they_started_are_stopped(queue, tmp_path, capsys):
    """Not died: nothing of them was lost, and the sweep's exit code says that the same command goes on."""
    assert main([*DETACHED, "seed=1,2"]) == 0
    [sweep] = sweeps(tmp_path)
    queue.hold()
    capsys.readouterr()
    assert look_after(["cancel", str(sweep.path)]) == 0
    assert look_after(["status", str(sweep.path)]) == 75
    assert capsys.readouterr().out.count(" stopped: GONE (unknown to SLURM: cancelled before it started") == 2
    assert main([*DETACHED, "seed=1,2"]) == 0 and queue.jobs == ["102_0", "102_1"]


@pytest.mark.parametrize(
    "found", ["--me", "-u root", "101; touch canary", "101\n102", "", "1_2_3", "\u0661", 101, None]
)
def test_a_job_id_that_is_no_number_reaches_no_command(found, queue, tmp_path, capsys):
    sweep = sweep_of(tmp_path, ["seed=1"])
    sweep.jobs[0].submission = {"kind": "slurm", "job_id": found, "logs": [], "launcher": {}}
    sweep.save()
    for command in ("status", "cancel", "retry"):
        assert look_after([command, str(sweep.path)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "submission.job_id: got " in line and "sweep.json: " in line
    assert not list(tmp_path.rglob("canary"))


def test_a_job_that_the_sweep_did_not_submit_is_not_cancelled(queue, tmp_path, capsys):
    assert main([*DETACHED, "seed=1"]) == 0
    [sweep] = sweeps(tmp_path)
    foreign = tmp_path / "other.sh"
    foreign.write_text("#!/bin/sh\n# sweep /elsewhere\n")
    with (queue.folder / "queue").open("a") as lines:
        lines.write(f"4711 4711 {foreign}\n")
    sweep.jobs[0].submission["job_id"] = "4711"
    sweep.save()
    capsys.readouterr()
    assert look_after(["cancel", str(sweep.path)]) == 0
    assert "job 0 was not cancelled: SLURM's job 4711 was not submitted by this sweep" in capsys.readouterr().out
    assert "4711" in queue.jobs


def test_a_retry_checks_the_options_that_the_file_names(queue, tmp_path, capsys):
    assert main([*DETACHED, "seed=1"]) == 0
    [sweep] = sweeps(tmp_path)
    assert look_after(["cancel", str(sweep.path)]) == 0
    text = sweep.file.read_text().replace('"partition": null', '"partition": "a\\ntouch canary"')
    sweep.file.write_text(text)
    capsys.readouterr()
    look_after(["retry", str(sweep.path)])
    captured = capsys.readouterr()
    assert (
        "hydra.launcher.partition: got 'a\\ntouch canary', which contains the invisible" in captured.out + captured.err
    )
    assert not queue.jobs
