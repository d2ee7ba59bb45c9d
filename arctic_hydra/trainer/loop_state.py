"""State of the training loop between steps, in addition to the counters in checkpoints."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from arctic_hydra.callback.base import Callback
from arctic_hydra.distributed import World
from arctic_hydra.progress import Progress

_FURTHER = ("figures", "minima", "maxima")


@dataclass
class LogSums:
    """Sums since the last log line; the loss stays on the device until the next one."""

    loss_sum: Any = 0.0
    has_loss: bool = False
    """Whether a step had a loss to log."""
    steps: int = 0
    supervised: int = 0
    units: int = 0
    """Units of the loss over all ranks: supervised tokens, unless the trainer counts others."""
    tokens: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    """Supervised tokens of each data source, if there are several."""
    flops: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    """This rank's sums over units of further figures, by name; they stay on the device until the next line."""
    minima: dict[str, Any] = field(default_factory=dict)
    """This rank's minima of further figures, by name; they stay on the device until the next line."""
    maxima: dict[str, Any] = field(default_factory=dict)
    """This rank's maxima of further figures, in the same way."""
    start: float = field(default_factory=time.monotonic)
    paused: float = 0.0
    """Seconds spent on evaluation and saving, which do not count as training time."""

    def add_loss(self, loss_sum: Any) -> None:
        """Add the loss of a step: this rank's sum over its units."""
        self.loss_sum, self.has_loss = self.loss_sum + loss_sum, True

    def add_figures(self, sums: dict[str, Any]) -> None:
        """Add sums over this rank's units, whose means over all ranks the line shows; each rank adds the same names."""
        self.figures = self.figures | {name: self.figures.get(name, 0.0) + value for name, value in sums.items()}

    def add_extremes(self, minima: dict[str, Any], maxima: dict[str, Any]) -> None:
        """Add tensors of which the line shows the minimum and the maximum over all ranks; each rank adds the same names."""
        lower, upper = self.minima, self.maxima
        self.minima = lower | {name: value.clamp(max=lower.get(name, math.inf)) for name, value in minima.items()}
        self.maxima = upper | {name: value.clamp(min=upper.get(name, -math.inf)) for name, value in maxima.items()}

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Exclude the time spent in this context from throughput metrics."""
        start = time.monotonic()
        yield
        self.paused += time.monotonic() - start

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain numbers, for checkpoints between two log lines; synchronizes with the device."""
        names = ("has_loss", "steps", "supervised", "units", "tokens", "flops", "seconds")
        figures = {name: getattr(self, name) for name in names}
        further = {
            kind: {name: float(value) for name, value in getattr(self, kind).items()}
            for kind in _FURTHER
            if kind == "figures" or getattr(self, kind)
        }
        return {**figures, "loss_sum": float(self.loss_sum), **further, "by_source": dict(self.by_source)}

    @classmethod
    def resumed(cls, state: dict[str, Any]) -> LogSums:
        """Return the totals that `state_dict` saved; new ones if `state` is empty."""
        if not state:
            return cls()
        figures = {name: value for name, value in state.items() if name not in ("seconds", "by_source")}
        figures.setdefault("has_loss", state["steps"] > 0)  # the three are not in checkpoints of earlier versions
        figures.setdefault("units", state["supervised"])
        figures |= {kind: dict(state.get(kind, {})) for kind in _FURTHER}
        return cls(**figures, by_source=Counter(state["by_source"]), start=time.monotonic() - state["seconds"])

    @property
    def seconds(self) -> float:
        """Training time since the last log line, including waits for data and other ranks."""
        return time.monotonic() - self.start - self.paused

    def metrics(self, progress: Progress, loss_sum: float, peak_tflops: float | None) -> dict[str, Any]:
        """Return the metrics of a log line; `loss_sum` and token counts are over all ranks, tflops are per rank."""
        seconds = self.seconds
        tflops = self.flops / seconds / 1e12
        return {
            "loss": loss_sum / self.units if self.units and self.has_loss else None,
            "step_seconds": seconds / self.steps,
            "tokens": progress.tokens,
            "supervised_tokens": progress.supervised_tokens,
            "padding_tokens": progress.padding_tokens,
            "tokens_per_second": self.tokens / seconds,
            "supervised_tokens_per_second": self.supervised / seconds,
            "tflops": tflops,
            "mfu": tflops / peak_tflops if peak_tflops else None,
            "skipped_steps": progress.skipped_steps,
            **{f"source_share/{name}": count / max(1, self.supervised) for name, count in self.by_source.items()},
        }


@dataclass
class StepResult:
    """The result of one optimizer step."""

    applied: bool = False
    """Whether weights changed; false for non-finite gradients, loss spikes and steps without supervised tokens."""
    stepped: bool = False
    """Whether `optimizer_step` has run."""
    pending: bool = False
    """Whether gradients wait for `optimizer_step`."""
    grad_norm: float = math.nan
    learning_rate: float = math.nan
    """The learning rate that the step used."""
    loss_sum: Any = None
    """This rank's sum of the losses of `Trainer.loss`, without a graph; it stays on the device."""
    spike: str = ""
    """Why the step's loss counts as a spike; empty if it does not."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Further figures of this rank for the step's log line, as numbers or scalar tensors, by name."""


@dataclass
class LoopState:
    """State of a trainer since the process started."""

    callbacks: list[Callback]
    world: World
    progress: Progress = field(default_factory=Progress)
    """The counters of the run."""
    horizon: int = 0
    """Optimizer steps of the whole run."""
    warmup_steps: int = 0
    """Optimizer steps of the schedule's warm-up."""
    totals: LogSums = field(default_factory=LogSums)
    """Sums since the last log line."""
    result: StepResult = field(default_factory=StepResult)
    """The step in progress, or the last one."""
    asked: tuple[str, bool] = ("", False)
    """Why code on this rank has asked to end the run (empty if it has not), and whether the run is then finished."""
    ended: str = ""
    """Why the run is finished before its horizon; empty if it is not."""
    step_start: Any = None
    """The state to which an error before the optimizer step returns (`parts.saving.StepStart`); None at other times."""
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the verification of exports found, by name of the export, in this start, or wrong in those before; on rank 0 only."""
    verified_any: bool = False
    """Whether an export of this start was verified; the same on every rank."""
    evaluated_at: int = -1
    """Step of the last evaluation."""
    first_step: int = 0
    """Steps completed before this process started."""
    started: float = field(default_factory=time.monotonic)
    """Start of training, in seconds of `time.monotonic`."""
