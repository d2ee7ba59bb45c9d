"""Early stopping."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number
from arctic_hydra.metrics import check_has

if TYPE_CHECKING:
    from arctic_hydra.trainer.base import Trainer


class Better(Enum):
    """Which values of a metric are better."""

    lower = "lower"
    higher = "higher"


@component(group="callback", name="early_stopping")
class EarlyStopping(Callback):
    """Finishes the run once a metric of the evaluation has not improved for some evaluations.

    The run ends as at its last step: with the last evaluation and the export. Combine it with
    `checkpoint.deepspeed.keep_best` to keep the weights of the best evaluation.
    """

    metric: str = "eval/loss"
    """Metric of the evaluation, such as eval/loss, eval/accuracy or eval/<source>/loss."""
    better: Better = Better.lower
    """Whether lower or higher values are better."""
    patience: HumanInt = integer(3, minimum=1)
    """Evaluations without an improvement after which the run ends."""
    min_delta: HumanFloat = number(0.0, minimum=0)
    """Smallest change that counts as an improvement."""

    only_observes: ClassVar[bool] = False
    needs_evaluation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._best: float | None = None
        self._best_step = self._without = 0

    def on_train_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Decide again, in case a signal stopped the run before it could; a run that extends another one restarts the count."""
        if trainer.tools.state.extended_at == trainer.global_step:
            self._without = 0
        self._decide(trainer)

    def on_evaluate_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Compare the metric with the best one; NaN does not count as an improvement. Raises ConfigError for an unknown metric."""
        metrics = facts["metrics"]
        check_has(metrics, self.metric, "callback.early_stopping.metric")
        value = metrics[self.metric]
        gain = math.inf if self._best is None else (self._best - value) * (1 if self.better is Better.lower else -1)
        if not math.isnan(value) and (gain > self.min_delta):
            self._best, self._best_step, self._without = float(value), int(metrics["step"]), 0
        else:
            self._without += 1
        self._decide(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and how many evaluations have passed since."""
        return {"best": self._best, "best_step": self._best_step, "without": self._without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._best, self._best_step, self._without = state["best"], state["best_step"], state["without"]

    def _decide(self, trainer: Trainer) -> None:
        if self._without >= self.patience:
            best = (
                "was never a number" if self._best is None else f"was best at step {self._best_step} ({self._best:.4g})"
            )
            trainer.stop(
                f"{self.metric} {best} and has not improved in {self._without} evaluations "
                f"(callback.early_stopping.patience={self.patience})",
                finished=True,
            )
