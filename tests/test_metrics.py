"""`metrics.jsonl` is valid JSON for any number, and the objective of a run."""

from __future__ import annotations

import json
import math

import pytest

from arctic_hydra.metrics import MetricsFile, objective, read_metrics


def test_pitfall_18_w11_non_finite_numbers_are_valid_json_and_not_hidden(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    file.write({"step": 2, "loss": 1.5, "grad_norm": 1.0, "lr": 0.1})
    file.close()

    def refuse(name):
        pytest.fail(f"{name} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert rows == [
        {"step": 1, "loss": None, "grad_norm": None, "lr": 0.1, "non_finite": ["loss", "grad_norm"]},
        {"step": 2, "loss": 1.5, "grad_norm": 1.0, "lr": 0.1},
    ]
    assert read_metrics(path) == rows


def test_the_objective_is_the_last_evaluation_after_training_else_the_loss():
    start, step, end = {"step": 0, "eval/loss": 9.0}, {"step": 1, "loss": 2.0}, {"step": 1, "eval/loss": 3.0}
    assert objective([start, step, end], "auto") == 3.0
    assert objective([start, step], "auto") == 2.0
    assert objective([start, step, end], "eval/accuracy") is None
