"""Base of the callbacks: user code that runs at each event of a run."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import Component
from arctic_hydra.errors import did_you_mean

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

EVENTS = (*(f"on_{moment}_{edge}" for moment in MOMENTS for edge in ("start", "end")), "on_log", "on_exception")

REPLACES = {
    "on_load_end": "rows",
    "on_split_end": "examples",
    "on_create_loader_end": "loader",
    "on_create_model_end": "model",
    "on_create_optimizer_end": "optimizer",
    "on_create_scheduler_end": "scheduler",
    "on_loss_start": "batch",
    "on_loss_end": "loss",
    "on_backward_start": "loss",
    "on_evaluate_end": "metrics",
    "on_log": "metrics",
}
"""The fact that a returned value replaces, by event; at all other events, a callback returns None."""

KEEP_THEIR_TYPE = ("batch", "loss", "metrics")
"""Facts that only a value of the same type can replace."""
NEEDED = {
    "rows": ("__len__",),
    "loader": ("steps", "windows"),
    "model": ("config", "forward", "named_parameters"),
    "optimizer": ("param_groups", "step"),
    "scheduler": ("get_last_lr", "last_epoch", "step"),
}
"""What the run uses of other facts, which a value in their place has as well."""
OBSERVERS_MAY_REPLACE = frozenset(("on_log", "on_evaluate_end"))
"""Events where a replaced value is only recorded, so that a callback that only observes may replace it too."""

_PLAIN = (str, int, float, bool, NoneType)

TRAINER_STATE = "trainer"
"""Key of the trainer's state among the states of callbacks in a checkpoint; no callback may have this name."""


@dataclass(kw_only=True)
class Callback(Component):
    """Base of the callbacks: define any of `EVENTS` as `def on_step_end(self, trainer, facts)`.

    `facts` holds what the event is about, such as the batch, the loss or the metrics; docs/extending/callbacks.md lists them.
    A value other than None that an event returns replaces the fact that `REPLACES` names, for the run and for the callbacks
    that follow. Callbacks run in the order in which they are selected; an error in one ends the run.
    """

    only_observes: ClassVar[bool] = True
    """Whether the callback does not affect the result of the run; if false, its fields are part of the run's identity."""
    bytes_per_parameter: ClassVar[int] = 0
    """Memory that the callback takes per trained parameter, divided among the ranks like the state of the optimizer."""
    needs_evaluation: ClassVar[bool] = False
    """Whether the callback has no effect in a run without evaluation data, which is then refused."""
    generates: ClassVar[bool] = False
    """Whether the callback generates text, which a model with a score head cannot; such a run is refused."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = [name for name in vars(cls) if name.startswith("on_") and name not in EVENTS]
        if unknown:
            hint = did_you_mean(unknown[0], EVENTS) or f"; the events are {', '.join(EVENTS)}"
            raise TypeError(f"{cls.__name__}.{unknown[0]} is not an event{hint}")
        for name, value in vars(cls).items():
            if name in EVENTS and not _is_handler(value):
                raise TypeError(
                    f"{cls.__name__}.{name} cannot be called as an event; declare `def {name}(self, trainer, facts)`"
                )

    def on_exception(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Handle the error in `facts["error"]` before the run in `facts["run_dir"]` ends with it.

        It may be called while the run is built, before `trainer.tools` exists. An error raised here is logged.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, lists and dicts; empty by default.

        Each rank saves its own. A run that resumes on another number of ranks loads the state of rank 0, but for
        `state["partitioned"]`: tensors that are divided among the ranks as the optimizer's fp32 weights
        (`arctic_hydra.callback.master_weights.parts`), which are divided again. At ZeRO-0, `state["names"]` names them.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; called before `on_init_end`, and only if the checkpoint holds a state."""


def _is_handler(value: Any) -> bool:
    """Whether an attribute of a class can be called with `trainer` and `facts` through an instance."""
    if isinstance(value, property):
        return True  # which only an instance can tell
    try:
        handler = value.__get__(object()) if hasattr(value, "__get__") else value
        inspect.signature(handler).bind(None, None)
    except ValueError:  # a builtin without a signature
        return True
    except TypeError:
        return False
    return True


def fire(callbacks: list[Callback], event: str, trainer: Trainer, facts: dict[str, Any]) -> None:
    """Call `on_<event>` of every callback that defines it; a value that one returns replaces a fact, see `REPLACES`.

    Raises TypeError for a value that cannot replace anything at this event, and for one from a callback that only observes.
    """
    name = f"on_{event}"
    for callback in callbacks:
        handler = getattr(callback, name, None)
        value = handler(trainer, facts) if handler is not None else None
        if value is not None:
            if problem := _problem(callback, name, value, facts):
                raise TypeError(f"{type(callback).__name__}.{name} returned a {type(value).__name__}, {problem}")
            facts[REPLACES[name]] = value


def _problem(callback: Callback, name: str, value: Any, facts: dict[str, Any]) -> str | None:
    """Return why `value` cannot replace a fact at the event `name`, or None."""
    fact = REPLACES.get(name)
    if fact is None or fact not in facts:
        return "but a value replaces nothing at this event; return None"
    if callback.only_observes and name not in OBSERVERS_MAY_REPLACE:
        return (
            f"which would replace {fact!r}, but {type(callback).__name__} only observes; set `only_observes: ClassVar[bool] = False` "
            "in the class, which makes its fields part of the run's identity"
        )
    if fact in KEEP_THEIR_TYPE and not isinstance(value, type(facts[fact])):
        return f"expected a {type(facts[fact]).__name__} to replace {fact!r}, or None"
    if lacking := [each for each in NEEDED.get(fact, ()) if not hasattr(value, each)]:
        return f"which lacks {', '.join(lacking)}, expected what can replace {fact!r}, or None"
    if fact == "examples" and not (isinstance(value, tuple | list) and len(value) == 2):
        return "expected two arrays of indices to replace 'examples', for training and held out, or None"
    if fact == "metrics" and (odd := [key for key, each in value.items() if not isinstance(each, _PLAIN)]):
        return f"whose {odd[0]} is a {type(value[odd[0]]).__name__}, expected a number or a text; convert it, as with float(...)"
    if fact == "metrics" and (dropped := sorted(facts[fact].keys() - value.keys())):
        return (
            f"which lacks {', '.join(dropped)}; return a copy with more or changed values, {{**facts['metrics'], ...}}"
        )
    return None
