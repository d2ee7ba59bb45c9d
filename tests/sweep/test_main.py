"""`python -m arctic_hydra.sweep`."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.cli.composition.compose import with_paths
from arctic_hydra.run_directory import write_json
from arctic_hydra.sweep.__main__ import WATCH_SECONDS
from arctic_hydra.sweep.__main__ import main as look_after
from arctic_hydra.sweep.directory import Sweep
from tests.command import SMALL
from tests.composing import composed
from tests.launchers.slurm_sweeps import DETACHED, sweeps
from tests.sweep.sweeps import sweep_of


def test_a_directory_that_is_not_a_sweep_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        look_after(["summary", "empty", "--job", "1"])
    assert "unrecognized arguments: --job 1" in capsys.readouterr().err
    Path("empty").mkdir()
    assert look_after(["status", "empty"]) == 2
    assert (
        "no sweep.json here; expected the directory of a sweep, outputs/<name>/sweeps/<id>" in capsys.readouterr().err
    )
    Path("a/sweeps/b").mkdir(parents=True)
    Path("a/sweeps/b/sweep.json").touch()
    assert look_after(["status", "a"]) == 2
    assert "/a/sweeps/b?" in capsys.readouterr().err
    for text, words in (("{", "not JSON (Expecting"), ('{"method": "bayes"}', "format: got None, expected 1")):
        Path("empty/sweep.json").write_text(text)
        assert look_after(["status", "empty"]) == 2
        assert f"sweep.json: {words}" in capsys.readouterr().err


def test_watching_continues_while_slurm_does_not_respond(queue, tmp_path, capsys, monkeypatch):
    assert main([*DETACHED, "seed=1"]) == 0
    [sweep] = sweeps(tmp_path)
    events = [queue.go_away, queue.come_back, lambda: sweep.jobs[0].directory.update_record(status="finished")]
    monkeypatch.setattr(time, "sleep", lambda seconds: events.pop(0)() if seconds == WATCH_SECONDS else None)
    capsys.readouterr()
    look_after(["status", str(sweep.path), "--watch"])
    shown_states = [
        line.split()[2].rstrip(":") for line in capsys.readouterr().out.splitlines() if line.startswith("job 0 ")
    ]
    assert shown_states[:4] == ["running", "unknown", "running", "finished"] and events == []


def test_jobs_without_a_log_are_named_and_other_logs_are_shown(queue, tmp_path, capsys):
    """SLURM makes the file as the job begins: one that waits, or was cancelled while it waited, has none."""
    assert main([*DETACHED, "seed=1,2"]) == 0
    [sweep] = sweeps(tmp_path)
    assert look_after(["cancel", str(sweep.path)]) == 0
    (sweep.path / "slurm" / "101_1_0_log.out").write_text("first\nlast\n")
    capsys.readouterr()
    assert look_after(["logs", str(sweep.path), "--lines", "1"]) == 0
    first, second, line = capsys.readouterr().out.splitlines()
    assert first == "job 0 has no log, because it has not started"
    assert second.startswith("job 1: ") and second.endswith("101_1_0_log.out") and line == "  last"


STEER = "\x1b]0;x\x07"


@pytest.mark.parametrize("text", ["\ud800", STEER, f"a{STEER}\nb\ud800"], ids=["surrogate", "escape", "both"])
@pytest.mark.parametrize("word", ["status", "summary", "logs"])
def test_texts_of_state_files_neither_steer_the_terminal_nor_end_in_a_traceback(word, text, tmp_path, capfdbinary):
    sweep = sweep_of(tmp_path, [f"seed={text}", f"a{text}=1"], ["seed=2"], ["seed=3"], command=[text])
    sweep.objective = sweep.name = text
    sweep.jobs[2].problem = text
    for job, status in zip(sweep.jobs, ("finished", "failed"), strict=False):
        job.directory.create()
        job.directory.update_record(status=status, error=text, seconds=1.0, started=1.0)
        metrics = {"step": 1, "loss": 1.0, "eval/loss": 2.0, text: 2.0}
        (job.directory.path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    sweep.save()
    look_after([word, str(tmp_path), *(["--job", "2"] if word == "logs" else [])])
    shown = b"".join(capfdbinary.readouterr())
    assert shown and b"Traceback" not in shown and b"\x1b" not in shown and b"\x07" not in shown
    if word == "summary":
        assert (
            b"could not write" not in shown and (tmp_path / "sweep.csv").exists() and (tmp_path / "sweep.html").exists()
        )


@pytest.mark.parametrize(
    ("run_dir", "expected"),
    [("/a" * 2500, "less than 4,096 bytes"), ("/" + "a" * 300, "at most 255 in each"), ("/\ud800", "can be encoded")],
    ids=["path", "name", "surrogate"],
)
@pytest.mark.parametrize("word", ["status", "logs", "summary", "retry", "cancel"])
def test_a_run_directory_that_no_file_system_can_have_is_refused(word, run_dir, expected, tmp_path, capsys):
    sweep = sweep_of(tmp_path, ["seed=1"])
    sweep.jobs[0].run_dir = run_dir
    sweep.save()
    assert look_after([word, str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "jobs.0.run_dir: got " in error and expected in error


def test_jobs_that_never_started_are_neither_cancelled_nor_retried(tmp_path, monkeypatch, capsys):
    sweep = sweep_of(tmp_path, ["seed=1"], ["seed=2"])
    sweep.jobs[0].problem = "failed: no such file"
    sweep.save()
    assert look_after(["cancel", str(tmp_path)]) == 0
    waits = "none of these jobs is queued or running; 1 waits for the sweep"
    assert capsys.readouterr().out == f"{waits}'s own command\n"
    look_after(["retry", str(tmp_path)])
    assert "no job that was started failed, died or stopped; the sweep's own" in capsys.readouterr().out
    monkeypatch.setattr(Sweep, "owner", lambda sweep: "process 1")
    assert look_after(["cancel", str(tmp_path), "--job", "1"]) == 0
    assert capsys.readouterr().out == f"{waits} process, which cancel without --job stops\n"


def test_results_are_not_written_through_links(tmp_path):
    (tmp_path / "victim").write_text("mine")
    sweep = sweep_of(tmp_path, ["seed=1"])
    sweep.save()
    for name in ("sweep.csv", "sweep.html"):
        (tmp_path / name).symlink_to("victim")
    look_after(["summary", str(tmp_path)])
    assert (tmp_path / "victim").read_text() == "mine"
    assert "seed=1" not in (tmp_path / "victim").read_text() and not (tmp_path / "sweep.csv").is_symlink()


def test_a_retry_starts_only_runs_that_belong_to_their_directories(tmp_path, monkeypatch, capsys):
    """`sweep.json` may have been edited: nothing is written into a folder without the run that it names."""
    monkeypatch.chdir(tmp_path)
    assert (
        main(f"-m {SMALL} tracking=[] trainer.train_iters=1 trainer.kill_switch_path={tmp_path}/STOP seed=1".split())
        == 0
    )
    [path] = (tmp_path / "outputs" / "default" / "sweeps").iterdir()
    sweep = Sweep.load(path)
    run_dir = Path(sweep.jobs[0].run_dir)
    shutil.copytree(run_dir, tmp_path / "copy")
    for place, problem in (
        ("copy", "describes another run than that of its directory"),
        ("no/run", "run.json: is missing"),
    ):
        sweep.jobs[0].run_dir, sweep.jobs[0].submission = str(tmp_path / place), {"kind": "local", "pid": 0}
        sweep.jobs[0].problem = "failed"
        sweep.save()
        before = sorted(tmp_path.rglob("*"))
        assert look_after(["retry", str(path)]) == 1
        assert problem in capsys.readouterr().out
        assert [item for item in sorted(tmp_path.rglob("*")) if item not in before and path not in item.parents] == []


def test_a_retry_trusts_code_of_a_model_only_if_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(tmp_path, ["seed=1"])
    sweep.jobs[0].problem, sweep.jobs[0].submission = "failed", {"kind": "local", "pid": 0}
    sweep.save()
    tree = {**with_paths(composed()), "model": {"trust_remote_code": True}}
    sweep.jobs[0].directory.create()
    write_json(sweep.jobs[0].directory.run_file, {"format": 1, "config": tree})
    assert look_after(["retry", str(tmp_path)]) == 2
    assert "job 0: model.trust_remote_code is true in" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "retry", "summary"])
def test_a_link_to_itself_is_one_error(command, tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    assert look_after([command, str(tmp_path / "loop")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/loop/sweep.json: cannot be read (Too many levels of symbolic links); ")
