"""Metrics of a run: the file `metrics.jsonl`, FLOPs, memory and evaluation results."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.errors import ConfigError, StateFileError
from arctic_hydra.files.state_file import open_to_read

if TYPE_CHECKING:
    import torch

SMOOTHED_LINES = 20
"""Log lines that a shown training loss is the mean of, at most."""

# Dense bf16 peak in TFLOP/s, from the vendors' data sheets, by words of the device's name; the first that match count.
_PEAK_TFLOPS = {
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800 PCIe": 756.0,
    "H800": 989.0,
    "GH200": 989.0,
    "GB200": 2500.0,
    "B200": 2250.0,
    "A100X": 312.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
}


class MetricsFile:
    """The file `metrics.jsonl`: one JSON object per line.

    JSON has no NaN or infinity: such values are written as null and their names are listed under `non_finite`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Append one line in one write, so that a kill can truncate only the last line."""
        bad = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        clean = {name: None if name in bad else value for name, value in values.items()}
        if bad:
            clean["non_finite"] = bad
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush the file to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.jsonl`, without an incomplete last line that a kill may have left.

    Raises StateFileError, naming the line, if any other line is not a row.
    """
    rows: list[dict[str, Any]] = []
    try:
        descriptor = open_to_read(path)
    except FileNotFoundError:
        return rows
    with os.fdopen(descriptor, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            if (row := parse_row(line)) is None:
                raise StateFileError(
                    f"{path}:{number}: not a line of metrics; delete the damaged lines, or move the file away: the next start "
                    "of the run creates it again"
                )
            # One text for each name halves the memory of a million lines.
            rows.append({sys.intern(name): value for name, value in row.items()})
    return rows


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `samples.jsonl` (`step`, `prompt`, `completion`), without lines that are damaged."""
    found = []
    try:
        descriptor = open_to_read(path)
    except FileNotFoundError:
        return []
    with os.fdopen(descriptor, "rb") as file:
        for line in file:
            row = parse_row(line) if line.endswith(b"\n") else None
            if row is not None and isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
                found.append(row)
    return found


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Return one line of a `metrics.jsonl`, or None if it is damaged."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    # Callbacks may log other values, but these are read again.
    ours = (value for name, value in row.items() if name == "loss" or name.startswith("eval/"))
    fits = all(value is None or _number(value) is not None for value in ours)
    return row if fits and isinstance(row.get("non_finite", []), list) else None


def objective(rows: list[dict[str, Any]], name: str) -> float | None:
    """Return the last value of a metric: NaN if it is not finite, None if it was never logged.

    A non-finite last value is never replaced by an earlier one, because the run has diverged.
    """
    if name == "auto":
        rows, name = [row for row in rows if row["step"] > 0], logged_objective(rows, name)
    for row in reversed(rows):
        if name in row.get("non_finite", ()):
            return math.nan
        if (value := _number(row.get(name))) is not None:
            return value if math.isfinite(value) else math.nan
    return None


def logged_objective(rows: list[dict[str, Any]], name: str) -> str:
    """Return the metric that an objective is: `auto` means the evaluation loss after training, else the training loss."""
    if name != "auto":
        return name
    trained = [row for row in rows if row["step"] > 0]
    return "loss" if objective(trained, "eval/loss") is None else "eval/loss"


def objective_name(name: str, result: dict[str, Any]) -> str:
    """Return the metric that the objective of a result is, which `auto` chooses as `logged_objective` does."""
    if name != "auto":
        return name
    evaluated = result.get("last_evaluation") or {}
    return "eval/loss" if evaluated.get("step") else "loss"


def check_has(evaluation: dict[str, Any], name: str, key: str) -> None:
    """Raise ConfigError, for the key of the config that names it, if an evaluation does not have a metric."""
    if evaluation.get(name) is None:
        known = ", ".join(other for other in evaluation if other != "step")
        raise ConfigError(f"{key}: got {name}, expected one of {known}")


def smoothed_ends(rows: Iterable[dict[str, Any]]) -> tuple[float, float | None, int] | None:
    """Return the mean training loss of the first and of the last log lines of a run, and over how many lines each is.

    These are the first and the last quarter of the lines with a finite loss, but at most `SMOOTHED_LINES` each, because a
    single line is too noisy to say how much a model has learned. The last mean is None if the last line has no finite
    loss: the run has diverged. None without any finite loss.
    """
    losses = [_number(row["loss"]) for row in rows if "loss" in row]
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if not finite:
        return None
    count = max(1, min(SMOOTHED_LINES, len(finite) // 4))
    diverged = losses[-1] is None or not math.isfinite(losses[-1])
    return sum(finite[:count]) / count, None if diverged else sum(finite[-count:]) / count, count


def _number(value: Any) -> float | None:
    """Return a number of a metric, None for anything else, such as an integer that no float can represent."""
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None


def model_flops(
    body: float,
    head: float,
    num_layers: int,
    attention_width: int,
    lengths: list[int],
    supervised: int,
) -> float:
    """Return the FLOPs of a forward and backward pass over documents of `lengths` tokens, `supervised` of them in the loss.

    `body` is per token and `head` per supervised token: 6 for each trained parameter (2 forward, 4 backward) and 4 for each
    frozen one, which has no gradient. Causal attention adds 12 * layers * width * length^2 / 2 (PaLM, appendix B, halved for
    the causal mask). Recomputation is not counted, so the rate is MFU, not HFU.
    """
    squares = sum(n * n for n in lengths)
    return body * sum(lengths) + head * supervised + 6.0 * num_layers * attention_width * squares


def peak_tflops(device: torch.device) -> float | None:
    """Return the dense bf16 peak of the device in TFLOP/s, or None if it is unknown (any CPU)."""
    import torch

    if device.type != "cuda":
        return None
    return peak_tflops_of(torch.cuda.get_device_name(device))


def peak_tflops_of(name: str) -> float | None:
    """Return the dense bf16 peak of the GPU with this name in TFLOP/s, or None if it is unknown."""
    words = " ".join(name.replace("-", " ").split())
    return next((peak for part, peak in _PEAK_TFLOPS.items() if f" {part} " in f" {words} "), None)


def memory_gib(device: torch.device) -> float:
    """Return the peak memory in GiB: allocated on the device with CUDA, else the resident memory of this process."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def evaluation_metrics(
    sums: list[list[float]],
    names: Iterable[str],
    of_row: Callable[[list[float]], dict[str, float]] = lambda row: token_metrics(*row),
    maxima: int = 0,
) -> dict[str, float]:
    """Turn per-source sums into metrics of all sources, and of each if there are several.

    The third of the sums is the number of units; `of_row` returns the metrics of a row that has any. The last `maxima`
    columns hold maxima instead of sums.
    """
    names, columns = list(names), list(zip(*sums, strict=True))
    added = len(columns) - maxima
    rows = [("eval", [*map(sum, columns[:added]), *map(max, columns[added:])])]
    if len(names) > 1:
        rows += [(f"eval/{name}", values) for name, values in zip(names, sums, strict=True)]
    return {f"{prefix}/{name}": value for prefix, values in rows if values[2] for name, value in of_row(values).items()}


def ranked_pairs(values: dict[str, Any], prefix: str = "") -> tuple[float, float] | None:
    """Return which share of the pairs is ranked right, and the mean margin; None for a loss without pairs.

    `prefix` is `eval/` for an evaluation, and empty for a step.
    """
    names = (("rewards/accuracies", "rewards/margins"), ("accuracy", "margin"))
    for share, margin in names:
        if values.get(prefix + share) is not None and values.get(prefix + margin) is not None:
            return values[prefix + share], values[prefix + margin]
    return None


def evaluation_figures(evaluation: dict[str, Any]) -> list[str]:
    """Return the metrics of an evaluation that a terminal shows besides the loss, each with its name.

    JSON holds null where a figure is not a number.
    """
    evaluation = {key: math.nan if value is None else value for key, value in evaluation.items()}
    figures = []
    if "eval/perplexity" in evaluation:
        figures += [f"perplexity {evaluation['eval/perplexity']:.4g}", f"accuracy {evaluation['eval/accuracy']:.1%}"]
    if ranked := ranked_pairs(evaluation, "eval/"):
        figures += [f"{ranked[0]:.1%} of pairs ranked right", f"margin {ranked[1]:.4g}"]
    elif "eval/rewards/margins" in evaluation:
        figures.append(f"margin {evaluation['eval/rewards/margins']:.4g}")
    if "eval/kl" in evaluation:
        figures.append(f"KL {evaluation['eval/kl']:.4g}")
    return figures


def token_metrics(loss_sum: float, correct: float, count: float) -> dict[str, float]:
    """Return loss, perplexity and accuracy of `count` units, which are tokens.

    Without a number of correct tokens (NaN), the loss need not be one of tokens: there is no accuracy and no perplexity.
    """
    mean = loss_sum / count
    if math.isnan(correct):
        return {"loss": mean}
    return {"loss": mean, "perplexity": math.exp(min(mean, 700.0)), "accuracy": correct / count}
