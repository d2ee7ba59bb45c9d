"""Base of the callbacks: user code that runs at each event of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import Component

if TYPE_CHECKING:
    from arctic_hydra.trainer.base import Trainer

MOMENTS = (
    "init",
    "load",
    "process",
    "split",
    "create_loader",
    "create_config",
    "create_model",
    "create_tokenizer",
    "create_optimizer",
    "create_scheduler",
    "train",
    "epoch",
    "step",
    "loss",
    "backward",
    "evaluate",
    "checkpoint",
    "save",
)
"""Each moment has the events `on_<moment>_start` and `on_<moment>_end`."""

EVENTS = (*(f"on_{moment}_{edge}" for moment in MOMENTS for edge in ("start", "end")), "on_exception")


@dataclass(kw_only=True)
class Callback(Component):
    """Base of the callbacks: define any of `EVENTS` as `def on_step_end(self, trainer, facts)`.

    `facts` holds the values of the event, such as the batch, the loss or the metrics. Callbacks run in the order in
    which they are selected; an error in one ends the run.
    """

    only_observes: ClassVar[bool] = True
    """Whether the callback does not affect the result of the run; if false, its fields are part of the run's identity."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = [name for name in vars(cls) if name.startswith("on_") and name not in EVENTS]
        if unknown:
            raise TypeError(f"{cls.__name__}.{unknown[0]} is not an event; the events are {', '.join(EVENTS)}")

    def on_exception(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Handle the error in `facts["error"]` before the run in `facts["run_dir"]` ends with it.

        It may be called while the run is built, before `trainer.tools` exists. An error raised here is logged.
        """
