"""The outcome of a run, from its trainer and its metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from arctic_hydra.distributed import World
from arctic_hydra.progress import Progress
from arctic_hydra.report.outcome import outcome

LOADER = SimpleNamespace(summary=lambda: {"examples": 3}, fingerprint="d0")
ROWS = [
    {"step": 0, "eval/loss": 9.0, "eval/accuracy": 0.0},
    {"step": 1, "loss": 8.0},
    {"step": 2, "loss": 4.0},
    {"step": 2, "eval/loss": 5.0, "eval/accuracy": 0.5},
]


def ended(run_dir: Path, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {
        "stores_scores": False,
        "last_metrics": {},
        "stop_reason": "",
        "training_finished": True,
        "global_step": 2,
        "training_horizon": 2,
    }
    facts["export_verdicts"] = {}
    trainer = SimpleNamespace(
        tools=SimpleNamespace(run_dir=run_dir), progress=Progress(), world=World(), device=torch.device("cpu"), **facts
    )
    vars(trainer).update(changes)
    return outcome(SimpleNamespace(objective="auto"), trainer, LOADER, None)  # type: ignore[arg-type]


def test_a_finished_run_has_its_first_and_last_figures_and_an_objective(tmp_path: Path) -> None:
    result = ended(tmp_path, ROWS)
    assert (result["status"], result["first_loss"], result["last_loss"]) == ("finished", 8.0, 4.0)
    assert (result["first_evaluation"], result["last_evaluation"]) == (ROWS[0], ROWS[3])
    assert (result["objective"], result["data_fingerprint"], result["world_size"]) == (5.0, "d0", 1)


def test_a_stop_before_the_horizon_is_not_an_end_and_one_at_it_is(tmp_path: Path) -> None:
    stopped = {"stop_reason": "received SIGTERM", "training_finished": False}
    assert ended(tmp_path, ROWS, **stopped)["status"] == "stopped"
    assert ended(tmp_path, ROWS, stop_reason="received SIGTERM")["status"] == "finished"


def test_what_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    result = ended(tmp_path, ROWS[1:3], last_metrics={"step": 2, "loss": math.nan})
    assert (result["last_loss"], result["objective"]) == (None, None)
    assert ended(tmp_path, [])["first_loss"] is None


def test_a_finished_run_whose_export_differs_has_failed(tmp_path: Path) -> None:
    verdicts = {"export": {"verified": False, "differs": ["its head is not tied"]}}
    result = ended(tmp_path, ROWS, export_verdicts=verdicts)
    assert (result["status"], result["verification"]) == ("failed", verdicts)
    assert result["error"] == "an export differs from the trained model: export: its head is not tied"
    verdicts["export"]["differs"] = []
    assert ended(tmp_path, ROWS, export_verdicts=verdicts)["status"] == "finished"


def test_a_run_that_stopped_while_scores_were_computed_has_none(tmp_path: Path) -> None:
    stopped = {"stop_reason": "received SIGTERM", "training_finished": False}
    assert ended(tmp_path, [], stores_scores=True, **stopped)["scores"] == [] and "scores" not in ended(tmp_path, [])
