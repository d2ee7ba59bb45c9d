"""The option `tensorboard`, with the real package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.tracking.tensorboard import TensorBoardTracker
from tests.composing import built

CONFIG = {"seed": 42}


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of every scalar, by name, in the order in which they were written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Any = EventAccumulator(str(folder))
    found.Reload()
    return {name: [(item.step, item.value) for item in found.Scalars(name)] for name in found.Tags()["scalars"]}


def log(tracker: TensorBoardTracker, run_dir: Path, rows: dict[int, float], status: str) -> None:
    tracker.start(run_dir, "name/id", CONFIG)
    with (run_dir / "metrics.jsonl").open("a") as file:
        for step, loss in rows.items():
            file.write(f'{{"step": {step}, "loss": {loss}, "mfu": null}}\n')
            tracker.log(step, {"loss": loss})
    tracker.finish(status)


def test_a_resumed_run_writes_every_step_once(tmp_path: Path) -> None:
    log(TensorBoardTracker(), tmp_path, {1: 4.0, 2: 3.0}, "stopped")
    log(TensorBoardTracker(), tmp_path, {3: 2.0}, "finished")
    assert events(tmp_path / "tracking-tensorboard") == {"loss": [(1, 4.0), (2, 3.0), (3, 2.0)]}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.0}\n')
    TensorBoardTracker().catch_up(tmp_path, "name/id", CONFIG, "failed")
    assert events(tmp_path / "tracking-tensorboard")["loss"][-1] == (4, 1.0)


def test_samples_are_texts_of_their_steps_and_are_written_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    line = '{"step": STEP, "prompt": "2 + 3?", "completion": "5"}\n'
    for step, status in ((1, "stopped"), (2, "finished")):
        with (tmp_path / "samples.jsonl").open("a") as file:
            file.write(line.replace("STEP", str(step)))
        log(TensorBoardTracker(), tmp_path, {step: 4.0}, status)
    found: Any = EventAccumulator(str(tmp_path / "tracking-tensorboard"))
    found.Reload()
    texts = found.Tensors("samples/text_summary")
    assert [item.step for item in texts] == [1, 2]
    assert texts[0].tensor_proto.string_val[0] == b"> 2 + 3?\n\n5"


def test_a_folder_for_all_runs(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    log(TensorBoardTracker(log_dir=str(tmp_path / "board")), tmp_path / "run", {1: 4.0}, "finished")
    assert events(tmp_path / "board" / "name" / "id") == {"loss": [(1, 4.0)]}


def test_a_folder_that_cannot_be_written_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tracking-tensorboard").write_text("in the way")
    log(TensorBoardTracker(), tmp_path, {1: 4.0}, "finished")
    assert "tracking.tensorboard: FileExistsError" in caplog.text and "Training continues" in caplog.text


def test_the_option_builds_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert built("tracking=[mlflow,tensorboard]").tracking["tensorboard"] == TensorBoardTracker()
    assert list(TensorBoardTracker().check_environment()) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [problem] = TensorBoardTracker().check_environment()
    assert problem.startswith("log_dir: tracking=[tensorboard] needs tensorboard, which is not installed")
