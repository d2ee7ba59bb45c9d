"""The record of a job's end."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from arctic_hydra import config, run_directory
from arctic_hydra.cli.composition import compose
from arctic_hydra.errors import ConfigError
from arctic_hydra.launch import job
from arctic_hydra.run_directory import RunDirectory, write_error
from tests.command import SMALL, losses, run
from tests.composing import built


@pytest.mark.parametrize(
    ("code", "kind", "asked", "status"),
    [
        (1, None, True, "stopped"),
        (-signal.SIGKILL, None, True, "stopped"),
        (-signal.SIGINT, None, False, "stopped"),
        (1, "KeyboardInterrupt", True, "stopped"),
        (1, "RankDied", True, "stopped"),
        (1, "ValueError", True, "failed"),
        (1, None, False, "failed"),
        (-signal.SIGKILL, None, False, "failed"),
        (1, "KeyboardInterrupt", False, "failed"),
        (1, "RankDied", False, "failed"),
    ],
)
def test_a_run_that_was_asked_to_stop_is_stopped_unless_it_reports_an_error(code, kind, asked, status, tmp_path):
    directory = RunDirectory(tmp_path)
    if kind:
        write_error(tmp_path, 1, kind, f"rank 1: {kind}")
        write_error(tmp_path, 0, "RuntimeError", "Connection closed by peer", exit_code=1)
    ending = job.record_ending(directory, code, asked_to_stop=asked)
    assert (ending.status, ending.exit_code) == (status, 75 if status == "stopped" else 1)
    assert directory.record()["status"] == status
    assert ("the same command starts again" in ending.details) == (status == "stopped")


def test_ranks_that_end_regularly_with_a_failed_result_fail_the_run(tmp_path):
    """As with an export that differs from the trained model."""
    directory = RunDirectory(tmp_path)
    directory.write_result({"status": run_directory.FAILED, "step": 2, "error": "an export differs"})
    ending = job.record_ending(directory, 0)
    assert (ending.status, ending.exit_code, ending.problem) == ("failed", 1, "an export differs")
    record = directory.record()
    assert (record["status"], record["error"], record["result"]["step"]) == ("failed", "an export differs", 2)


def test_an_interrupt_of_the_report_leaves_the_run_finished(tmp_path, monkeypatch, capsys):
    """It comes where the page is made, after the record was written."""
    directory = RunDirectory(tmp_path)
    directory.update_record(status=run_directory.RUNNING, identity={})
    run_directory.write_json(directory.result_file, {"status": run_directory.FINISHED})

    def interrupted(directory):
        raise KeyboardInterrupt

    monkeypatch.setattr(job.run_page, "write", interrupted)
    (tmp_path / "run.json").write_text('{"config": {"log": {"report": true}}}')
    assert job.record_ending(directory, 0, asked_to_stop=False).exit_code == 0
    assert directory.record()["status"] == run_directory.FINISHED
    assert "has no report; the same command with task=report writes it" in capsys.readouterr().err


def test_a_run_that_has_the_id_of_an_earlier_version_is_resumed_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = f"{SMALL} tracking=[] trainer.train_iters=4"
    path = Path("outputs/default") / config.legacy_run_id(built(*arguments.split()))
    path.mkdir(parents=True)
    run(f"{arguments} trainer.exit_iteration=2", tmp_path, code=75)
    assert len(losses(path)) == 2
    run(arguments, tmp_path)
    assert len(losses(path)) == 4
    assert "checkpoints/step-00000004" in run(f"{arguments} task=evaluate", tmp_path).stdout
    assert [item.name for item in Path("outputs/default").iterdir()] == [path.name]


def test_checkpoints_elsewhere_are_not_silently_left_behind(tmp_path, monkeypatch):
    """As by the advice to choose a larger disk, given to a run that resumes."""
    monkeypatch.chdir(tmp_path)
    elsewhere = f"checkpoint.deepspeed.output_dir={tmp_path}/large"
    for before, after in (([], [elsewhere]), ([elsewhere], [])):
        start, again = (job.Job.of(compose.compose_config(items, "config").job, items) for items in (before, after))
        start.directory.path.mkdir(parents=True, exist_ok=True)
        start.directory.write_run(start.tree)
        start.directory.update_record(status="stopped")
        place = start.run.checkpoint["deepspeed"].directory_of(start.directory.path)
        (place / "checkpoints" / "step-00000002").mkdir(parents=True)
        with pytest.raises(
            ConfigError, match=r"checkpoint.deepspeed.output_dir: .* are in .*, so that it would start over"
        ):
            again.prepare_directory()
        start.prepare_directory()
        start.directory.update_record(status="finished")
        again.prepare_directory()
        shutil.rmtree(place / "checkpoints")
