"""Metrics: accumulated on the device, reduced once per log line, written to `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Dense bf16 peak in TFLOP/s, from the vendors' data sheets.
_PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "H800": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
}


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, valid JSON throughout (non-finite numbers become null and say so)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Append one line in one write, so that a kill tears at most the last line."""
        bad = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        clean = {name: None if name in bad else value for name, value in values.items()}
        if bad:
            clean["non_finite"] = bad
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Force what was written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`; a torn last line (a kill in mid-write) is left out."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        lines = path.read_text(encoding="utf-8").split("\n")
        for line in lines[:-1]:
            rows.append(json.loads(line))
    return rows


def objective(rows: list[dict[str, Any]], name: str) -> float | None:
    """Return the last value of a metric, NaN where that is no finite number, None where it was never logged.

    `auto` is the evaluation loss after training, else the training loss. An earlier value never stands in for a last one
    that is NaN or infinite: a run that diverged is not what it was before.
    """
    if name == "auto":
        trained = [row for row in rows if row["step"] > 0]
        value = objective(trained, "eval/loss")
        return objective(trained, "loss") if value is None else value
    for row in reversed(rows):
        if name in row.get("non_finite", ()):
            return math.nan
        if (value := row.get(name)) is not None:
            return float(value) if math.isfinite(value) else math.nan
    return None


def model_flops(
    body_parameters: int,
    head_parameters: int,
    num_layers: int,
    attention_width: int,
    lengths: list[int],
    supervised: int,
) -> float:
    """Return the FLOPs of one forward and backward over documents of `lengths` tokens, `supervised` of them trained on.

    6 per parameter and token (2 forward, 4 backward), plus causal attention: 12 * layers * width * length^2 / 2
    (PaLM, appendix B, halved for the causal mask); the head sees supervised positions only. Recomputation is not
    counted, so the rate gives MFU, not HFU.
    """
    squares = sum(n * n for n in lengths)
    matmul = body_parameters * sum(lengths) + head_parameters * supervised
    return 6.0 * matmul + 6.0 * num_layers * attention_width * squares


def peak_tflops(device: torch.device) -> float | None:
    """Return the device's dense bf16 peak in TFLOP/s, or None where it is not known (any CPU)."""
    import torch

    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_TFLOPS.items() if part in name), None)


def memory_gib(device: torch.device) -> float:
    """Return the peak memory in GiB: allocated on the device with CUDA, else resident of this process."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def evaluation_metrics(sums: list[list[float]], names: Iterable[str]) -> dict[str, float]:
    """Turn per-source sums into metrics: the total, and each source where there are several."""
    names = list(names)
    rows = [("eval", [sum(column) for column in zip(*sums, strict=True)])]
    if len(names) > 1:
        rows += [(f"eval/{name}", values) for name, values in zip(names, sums, strict=True)]
    metrics: dict[str, float] = {}
    for prefix, (loss_sum, correct, count) in rows:
        if count:
            mean = loss_sum / count
            metrics[f"{prefix}/loss"] = mean
            metrics[f"{prefix}/perplexity"] = math.exp(min(mean, 700.0))
            metrics[f"{prefix}/accuracy"] = correct / count
    return metrics
