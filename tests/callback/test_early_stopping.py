"""Early stopping: when a run ends, how it ends, and what it is refused with."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from arctic_hydra.callback.early_stopping import Better, EarlyStopping
from arctic_hydra.errors import ConfigError
from tests.command import SMALL, only_run, run


def _stops_after(values, **fields):
    """Return at which of the evaluations the callback asks for the end, resuming from its state after each one; None if never."""
    asked: list[tuple[str, bool]] = []
    trainer = SimpleNamespace(stop=lambda reason, finished: asked.append((reason, finished)))
    callback = EarlyStopping(**fields)
    for number, value in enumerate(values, start=1):
        callback.on_evaluate_end(trainer, {"metrics": {"step": 10 * number, "eval/loss": value}})  # type: ignore[arg-type]
        state = json.loads(json.dumps(callback.state_dict()))
        callback = EarlyStopping(**fields)
        callback.load_state_dict(state)
        if asked:
            return number, *asked[0]
    return None


@pytest.mark.parametrize(
    ("values", "fields", "expected"),
    [
        ([3, 2, 1, 0.5], {"patience": 1}, None),
        ([3, 2, 2.5, 2.1, 1.9], {"patience": 2}, 4),
        ([3, 2, 2.5, 1.9, 2, 2], {"patience": 2}, 6),
        ([3, 2.95, 2.91, 2.89], {"patience": 2, "min_delta": 0.1}, 3),
        ([3, 2.95, 2.85, 2.8], {"patience": 2, "min_delta": 0.1}, None),
        ([0.1, 0.2, 0.15], {"patience": 1, "better": Better.higher}, 3),
        ([math.nan, math.nan], {"patience": 2}, 2),
        ([2, math.nan, 1, 3], {"patience": 2}, None),
    ],
)
def test_it_asks_for_the_end_after_patience_evaluations_without_improvement(values, fields, expected) -> None:
    found = _stops_after(values, **fields)
    assert (found and found[0]) == expected
    if found:
        assert found[2] is True
        assert f"has not improved in {fields['patience']} evaluations (callback.early_stopping.patience=" in found[1]


def test_an_unknown_metric_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="callback.early_stopping.metric: got eval/f1, expected one of eval/loss, eval/x"
    ):
        EarlyStopping(metric="eval/f1").on_evaluate_end(None, {"metrics": {"step": 1, "eval/loss": 1.0, "eval/x": 2}})  # type: ignore[arg-type]


def test_it_is_refused_without_evaluations(tmp_path):
    done = run(f"{SMALL} callback=[early_stopping] task=check", tmp_path, code=2)
    assert "callback.early_stopping: stops the run by its evaluations, but trainer.eval_frequency=0" in done.stderr


def test_a_run_that_it_ends_is_finished(tmp_path):
    arguments = (
        f"{SMALL} callback=[early_stopping] callback.early_stopping.min_delta=100 trainer.eval_frequency=1 tracking=[]"
    )
    done = run(arguments, tmp_path)
    run_dir = only_run(tmp_path)
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["status"], result["step"]) == ("finished", 3) and result["horizon"] > 3
    assert "eval/loss was best at step 0" in result["stop_reason"] and "eval/loss was best at step 0" in done.stdout
    assert (run_dir / "export" / "model.safetensors").exists()
    again = run(arguments, tmp_path)
    assert "finished" in again.stdout and json.loads((run_dir / "result.json").read_text()) == result
