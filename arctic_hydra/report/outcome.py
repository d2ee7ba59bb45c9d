"""The outcome of a run, for its record and `result.json`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from arctic_hydra.config import Run
from arctic_hydra.data.base import Loader
from arctic_hydra.metrics import objective, read_metrics
from arctic_hydra.redaction import redact
from arctic_hydra.report.facts import ModelFacts
from arctic_hydra.run_directory import FAILED, FINISHED, STOPPED, RunDirectory
from arctic_hydra.trainer.base import Trainer
from arctic_hydra.trainer.verification.verdict import problem_of


def read_run_config(run_dir: Path) -> dict[str, Any]:
    """Return the resolved, redacted config of a run."""
    return redact(RunDirectory(run_dir).config() or {})  # type: ignore[no-any-return]


def statistics(loader: Loader, eval_loader: Loader | None, facts: ModelFacts) -> dict[str, Any]:
    """Return the statistics of data and model that are known before the first step, for the run's record."""
    model = {"name": facts.name, "parameters": facts.parameters, "trainable": facts.trainable}
    evaluation = eval_loader.summary() if eval_loader else None
    return {"train": loader.summary(), "eval": evaluation, "model": model}


def outcome(run: Run, trainer: Trainer, loader: Loader, resumed_from: Path | None) -> dict[str, Any]:
    """Return the outcome of the run for `result.json`: status, counters, first and last loss, objective.

    A run that stopped before all its scores were stored has `scores`, an empty list, as with `task=score`.
    """
    from arctic_hydra.trainer.scoring.scored_loader import ScoredLoader  # imports Arrow, which starts a thread

    lines = list(read_metrics(trainer.tools.run_dir / "metrics.jsonl"))
    steps = [row for row in lines if "loss" in row]
    evaluations = [row for row in lines if "eval/loss" in row]
    last = trainer.last_metrics or (steps[-1] if steps else {})
    verdicts = trainer.export_verdicts
    status = STOPPED if trainer.stop_reason and not trainer.training_finished else FINISHED
    return {
        **verified(status, verdicts),
        "stop_reason": trainer.stop_reason,
        "step": trainer.global_step,
        "horizon": trainer.training_horizon,
        "progress": trainer.progress.state_dict(),
        "first_loss": steps[0]["loss"] if steps else None,
        "last_loss": _finite(last.get("loss")),
        "first_evaluation": evaluations[0] if evaluations else None,
        "last_evaluation": evaluations[-1] if evaluations else None,
        "objective": _finite(objective([*steps, last, *evaluations] if last else evaluations, run.objective)),
        "resumed_from": str(resumed_from) if resumed_from else None,
        "data": loader.summary(),
        "data_fingerprint": loader.fingerprint,
        "world_size": trainer.world.size,
        "device": trainer.device.type,
        **({"scores": []} if trainer.stores_scores and not isinstance(loader, ScoredLoader) else {}),
    }


def verified(status: str, verdicts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return `status`, or FAILED with an `error` if a finished run or task has an export that differs, and the verdicts."""
    problem = problem_of(verdicts) if status == FINISHED else ""
    held = {"verification": verdicts} if verdicts else {}
    return {"status": FAILED, "error": problem, **held} if problem else {"status": status, **held}


def _finite(value: float | None) -> float | None:
    """Return None for numbers that JSON cannot represent; `metrics.jsonl` lists them under `non_finite`."""
    return value if value is not None and math.isfinite(value) else None
