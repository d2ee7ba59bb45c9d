"""`python -m arctic_hydra.sweep`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.sweep.__main__ import WATCH_SECONDS
from arctic_hydra.sweep.__main__ import main as look_after
from tests.launchers.slurm_sweeps import DETACHED, sweeps


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
