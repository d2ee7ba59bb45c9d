"""Describes the memory of a run: what is predicted before it starts, and what it used.

Both are the peak of the tensors of a rank on its device. A CPU has no such count: there, the memory of the whole process
is reported, with what it held before the model was built.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from arctic_hydra.config import Run
from arctic_hydra.memory import GIB, estimate, largest_micro_batch
from arctic_hydra.metrics import memory_gib

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prediction:
    """The estimate of a run, made when its model is built."""

    lines: list[str] = field(default_factory=list)
    total: int | None = None
    """The peak of the tensors in bytes; None if it was not estimated."""
    held_gib: float = 0.0
    """What the process held before the model was built."""

    def measured_line(self, device: torch.device) -> str:
        """Return the peak of this rank so far, next to the prediction."""
        peak = memory_gib(device)
        predicted = "" if self.total is None else f"predicted {self.total / GIB:.3g} GiB"
        if device.type == "cuda":
            return f"memory   peak {peak:.3g} GiB of tensors on the GPU{predicted and f', {predicted}'}"
        kept = f"; {predicted} of tensors" if predicted else ""
        return f"memory   peak {peak:.3g} GiB of the process, {self.held_gib:.3g} GiB of it before the model was built{kept}"


def describe(run: Run, supervised_share: float = 1.0, tokenizer: PreTrainedTokenizerBase | None = None) -> Prediction:
    """Return the estimate, or the reason it failed: a failed estimate must not end a run."""
    try:
        return predict(run, supervised_share, tokenizer)
    except Exception as error:
        return Prediction([failure_line(error)])


def predict(run: Run, supervised_share: float, tokenizer: PreTrainedTokenizerBase | None) -> Prediction:
    """Return the estimate as `describe` does; raises what `estimate` raises."""
    found = estimate(run, largest_micro_batch(run, supervised_share), tokenizer)
    first, *more = found.lines(_device_memory())
    return Prediction([f"memory   {first}", *(f"         {line}" for line in more)], found.total)


def failure_line(error: Exception) -> str:
    """Return the line that is shown if the estimate failed."""
    return f"memory   not estimated: {(str(error).splitlines() or [type(error).__name__])[0]}"


def process_gib() -> float:
    """Return the memory that this process holds now (resident), in GiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / GIB


def _device_memory() -> int | None:
    """Return the memory of this machine's GPU in bytes, or None without a GPU."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
