"""The option `wandb`, with the real package, offline."""

from __future__ import annotations

import json
import os
import pty
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.tracking import sender
from arctic_hydra.tracking.wandb import WandbTracker
from tests.command import environment, metrics, only_run, run
from tests.composing import built

CONFIG = {"seed": 42, "optimizer": {"lr": 1e-5}}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sender, "FINISH_SECONDS", 60.0)  # a busy machine


def records(run_dir: Path) -> list[Any]:
    """Return the records of the files that `wandb sync` would upload: a log in LevelDB's format of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(run_dir.glob("tracking-wandb/wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        content, place, whole = path.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
            length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
            whole += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # the whole record, or its last part
                found.append(wandb_internal_pb2.Record.FromString(whole))
                whole = b""
    return found


def rows(run_dir: Path) -> list[dict[str, Any]]:
    history = [record.history.item for record in records(run_dir) if record.WhichOneof("record_type") == "history"]
    named = [{(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in row} for row in history]
    return [{key: value for key, value in row.items() if not key.startswith("_") or key == "_step"} for row in named]


def test_a_run_and_its_resume_are_one_run_with_every_step_once(tmp_path: Path) -> None:
    arguments = "tracking=[wandb] tracking.wandb.entity=lab tracking.wandb.project=mine tracking.wandb.name=first"
    settings = "model.hidden_size=64 model.num_hidden_layers=2 data.num_proc=1 log.report=false checkpoint=[deepspeed]"
    command = (
        f"{arguments} {settings} trainer.train_iters=4 trainer.eval_frequency=2 data.eval_sources.chat.sample_count=9"
    )
    run(f"{command} trainer.exit_iteration=2", tmp_path, code=75, WANDB_MODE="offline")
    run(command, tmp_path, WANDB_MODE="offline")
    run_dir = only_run(tmp_path)
    found = records(run_dir)
    runs = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert len({item.run_id for item in runs}) == 1 and len(runs) >= 2
    assert (runs[0].entity, runs[0].project, runs[0].display_name) == ("lab", "mine", "first")
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update if item.key}
    assert config["seed"] == 42 and config["model"]["hidden_size"] == 64
    logged = rows(run_dir)
    written = metrics(run_dir)
    assert [row["_step"] for row in logged if "loss" in row] == [1, 2, 3, 4]
    assert [row["loss"] for row in logged if "loss" in row] == [row["loss"] for row in written if "loss" in row]
    assert [row["_step"] for row in logged if "eval/loss" in row] == [0, 2, 4]
    ends = [record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit"]
    assert ends == [0, 0]


def test_a_run_that_failed_is_ended_by_catching_up(tmp_path: Path) -> None:
    tracker = WandbTracker()
    tracker.catch_up(tmp_path, "never", CONFIG, "failed")  # a run that never reached the store is not created there
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    tracker.catch_up(tmp_path, "a/b", CONFIG, "stopped")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 0.2}\n'
    )
    tracker.catch_up(tmp_path, "a/b", CONFIG, "failed")
    assert rows(tmp_path) == [{"_step": 1, "loss": 0.5}, {"_step": 3, "loss": 0.2}]
    assert [item.exit.exit_code for item in records(tmp_path) if item.WhichOneof("record_type") == "exit"] == [0, 1]
    before = sorted(tmp_path.rglob("*"))
    tracker.catch_up(tmp_path, "a/b", CONFIG, "failed")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_that_is_down_neither_slows_nor_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(sender, "FINISH_SECONDS", 1.0)
    tracker = WandbTracker()
    started = time.perf_counter()
    tracker.start(tmp_path, "a/b", CONFIG)
    for step in range(100):
        tracker.log(step, {"loss": 1.0})
    assert time.perf_counter() - started < 1
    tracker.finish("failed")
    assert time.perf_counter() - started < 10
    assert "tracking.wandb: " in caplog.text and "Training continues" in caplog.text
    caplog.clear()
    tracker.catch_up(tmp_path, "a/b", CONFIG, "failed")
    assert not caplog.records, "it never reached the store, so it is not created there"


def test_without_a_key_nobody_is_asked_for_one(tmp_path: Path) -> None:
    """As when the same command is run again in a terminal, which sends what is missing."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    code = (
        "import pathlib, sys; from arctic_hydra.tracking import sender; sender.FINISH_SECONDS = 20.0\n"
        "from arctic_hydra.tracking.wandb import WandbTracker\n"
        "WandbTracker().catch_up(pathlib.Path(sys.argv[1]), 'a/b', {}, 'finished')"
    )
    ours, theirs = pty.openpty()
    home = {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    started = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**home)
    )
    assert started.wait(60) == 0
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "Create a W&B account" not in shown and "tracking.wandb: UsageError" in shown


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
def test_settings_in_the_working_directory_are_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They could name a server, which would get the API key."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    monkeypatch.chdir(tmp_path)
    [problem] = WandbTracker().check_environment()
    assert f"the server that gets the API key from {tmp_path}/{folder}/settings; set WANDB_* variables" in problem
    assert list(WandbTracker(enable=False).check_environment()) == []


def test_disabled_it_sends_nothing(tmp_path: Path) -> None:
    tracker = WandbTracker(enable=False)
    tracker.start(tmp_path, "a/b", CONFIG)
    tracker.log(1, {"loss": 1.0})
    tracker.finish("finished")
    tracker.catch_up(tmp_path, "a/b", CONFIG, "finished")
    assert list(tmp_path.iterdir()) == [] and list(tracker.check_environment()) == []


def test_fields_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert built("tracking=[wandb]").tracking["wandb"] == WandbTracker()
    with pytest.raises(ValueError, match="project: got ' ', expected a name"):
        WandbTracker(project=" ")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(WandbTracker().check_environment()) == [
        "enable: tracking=[wandb] needs wandb, which is not installed; pip install wandb, or leave wandb out"
    ]


def test_importing_the_options_imports_no_libraries() -> None:
    code = "import sys, arctic_hydra.tracking; sys.exit(any(name in sys.modules for name in ('wandb', 'tensorboard', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
