"""`metrics.jsonl` and the numbers in it."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import strategies as st

from arctic_hydra.errors import StateFileError
from arctic_hydra.metrics import (
    MetricsFile,
    evaluation_figures,
    evaluation_metrics,
    model_flops,
    objective,
    objective_name,
    peak_tflops_of,
    ranked_pairs,
    read_metrics,
    smoothed_ends,
)
from tests.mutations import as_json, attempt, changed, damaged, fuzz


def test_non_finite_numbers_are_valid_json_and_not_hidden(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    file.write({"step": 2, "loss": 1.5, "grad_norm": 1.0, "lr": 0.1})
    file.close()

    def refuse(name):
        pytest.fail(f"{name} is not JSON")

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


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    assert read_metrics(path) == [{"step": 1}]
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.parametrize(
    "line",
    [b"\x80\x04\x95", b"\x00" * 50, b"{", b"[1]", b"{}", b'{"step": "1"}', b'{"step": 1, "loss": {}}',
    b'{"step": 1, "loss": 1%s}' % (b"0" * 400), b"[" * 100_000]
)  # fmt: skip
def test_a_damaged_line_is_named(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(
        StateFileError, match=r"metrics\.jsonl:2: not a line of metrics; delete the damaged lines, or move"
    ):
        read_metrics(path)


def test_metrics_of_the_wrong_kind_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StateFileError, match=r"metrics\.jsonl: is a directory, expected a file"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("rows", "name", "expected"),
    [
        ([{"step": 0, "eval/loss": 3.0}, {"step": 1, "loss": 2.0}], "auto", 2.0),
        ([{"step": 1, "loss": 2.0}, {"step": 1, "eval/loss": 1.0}], "auto", 1.0),
        ([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "non_finite": ["loss"]}], "auto", math.nan),
        ([{"step": 1, "mfu": 0.4}, {"step": 2, "mfu": None}], "mfu", 0.4),
        ([{"step": 1, "loss": 2.0}], "mfu", None),
        ([{"step": 1, "counter": 10**400}], "counter", None),
    ],
)
def test_the_objective_is_the_last_value_and_nan_where_the_run_diverged(rows, name, expected):
    assert objective(rows, name) == pytest.approx(expected, nan_ok=True)


def test_evaluations_weigh_tokens_and_name_several_sources():
    metrics = evaluation_metrics([[2.0, 1.0, 2.0], [4.0, 3.0, 6.0], [0.0, 0.0, 0.0]], ["a", "b", "empty"])
    assert metrics["eval/loss"] == 6 / 8 and metrics["eval/accuracy"] == 4 / 8
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(6 / 8))
    assert (metrics["eval/a/loss"], metrics["eval/b/loss"]) == (1.0, 4 / 6)
    assert "eval/empty/loss" not in metrics
    assert set(evaluation_metrics([[2.0, 1.0, 2.0]], ["a"])) == {"eval/loss", "eval/perplexity", "eval/accuracy"}


def test_the_last_columns_of_an_evaluation_may_hold_maxima():
    rows = [[2.0, math.nan, 2.0, -1.0], [4.0, math.nan, 6.0, -3.0], [0.0, math.nan, 0.0, -math.inf]]
    of_row = lambda row: {"loss": row[0] / row[2], "highest": row[3]}  # noqa: E731
    metrics = evaluation_metrics(rows, ["a", "b", "empty"], of_row, maxima=1)
    assert [metrics[f"eval{source}/highest"] for source in ("", "/a", "/b")] == [-1.0, -1.0, -3.0]
    assert metrics["eval/loss"] == 6 / 8


def test_ranked_pairs_are_found_under_the_names_of_either_loss():
    assert ranked_pairs({"eval/rewards/accuracies": 0.5, "eval/rewards/margins": 2.0}, "eval/") == (0.5, 2.0)
    assert ranked_pairs({"accuracy": 0.25, "margin": -1.0}) == (0.25, -1.0)
    assert ranked_pairs({"eval/accuracy": 0.25, "eval/perplexity": 2.0}, "eval/") is None


def test_the_loss_of_a_run_is_the_mean_of_a_quarter_of_its_lines_and_of_twenty_at_most():
    rows = [{"step": step, "loss": float(step)} for step in range(1, 101)]
    assert smoothed_ends([{"step": 0, "eval/loss": 9.0}, *rows]) == (10.5, 90.5, 20)
    assert smoothed_ends(rows[:9]) == (1.5, 8.5, 2)
    assert smoothed_ends([rows[0], {"step": 2, "loss": None}, rows[2]]) == (1.0, 3.0, 1)
    assert smoothed_ends([*rows[:8], {"step": 9, "loss": None, "non_finite": ["loss"]}]) == (1.5, None, 2)
    assert smoothed_ends([{"step": 1, "loss": None}]) is None


def test_the_objective_has_the_name_of_its_metric():
    assert objective_name("eval/accuracy", {}) == "eval/accuracy"
    assert objective_name("auto", {"last_evaluation": {"step": 3, "eval/loss": 1.0}}) == "eval/loss"
    assert objective_name("auto", {"last_evaluation": {"step": 0}}) == "loss", (
        "it was evaluated before the training only"
    )
    assert objective_name("auto", {"last_evaluation": None}) == "loss"


def test_flops_count_the_head_for_supervised_tokens_only_and_attention_per_document():
    # 12 tokens of 60 FLOPs, 6 supervised ones of 24; attention: 12 * 2 layers * width 3 * 74 squared tokens, halved
    assert model_flops(60, 24, 2, 3, [5, 7], supervised=6) == 720 + 144 + 2664


def test_the_peak_of_a_gpu_is_that_of_its_variant():
    names = (
        "NVIDIA L40",
        "NVIDIA L4",
        "NVIDIA L40S",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA GH200 480GB",
    )
    assert [peak_tflops_of(name) for name in names] == [181, 121, 362, 756, 989, 312, 989]
    assert peak_tflops_of("NVIDIA GeForce RTX 4090") is None


ROWS = [
    {"step": 0, "eval/loss": 3.0, "eval/accuracy": 0.5, "epoch": 0.0},
    {"step": 1, "loss": 2.0, "lr": 1e-3, "mfu": None, "step_seconds": 0.1},
    {"step": 2, "loss": None, "non_finite": ["loss"]},
]


def one_random_history(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("random") / "metrics.jsonl"
    lines = [as_json(data.draw(st.just(row) | changed(row))) for row in ROWS]
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(data.draw(st.just(content) | damaged(content)))
    rows = attempt(lambda: read_metrics(path), StateFileError, path) or []
    for name in ("auto", "eval/loss", "loss", "lr", "epoch"):
        assert isinstance(objective(rows, name), float | None)


test_a_random_history, test_many_random_histories = fuzz(one_random_history)


def test_a_terminal_shows_the_figures_of_any_loss():
    assert evaluation_figures({"eval/loss": 1.0}) == []
    assert evaluation_figures({"eval/perplexity": None, "eval/accuracy": 0.5}) == ["perplexity nan", "accuracy 50.0%"]
    assert evaluation_figures({"eval/perplexity": 2.0, "eval/accuracy": 0.5}) == ["perplexity 2", "accuracy 50.0%"]
    pairs = {"eval/rewards/accuracies": 0.5, "eval/rewards/margins": 2.0}
    assert evaluation_figures(pairs) == ["50.0% of pairs ranked right", "margin 2"]
    assert evaluation_figures({"eval/rewards/margins": 2.0, "eval/kl": 0.0}) == ["margin 2", "KL 0"]
