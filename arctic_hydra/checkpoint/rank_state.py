"""State of a rank that DeepSpeed does not save: RNG states, schedule, sums since the last log line, and callbacks.

Everything is a tensor, number, string, list or dict, so that it loads with `weights_only=True`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from arctic_hydra.checkpoint.writer import load_tensors
from arctic_hydra.determinism import random_state, seed_everything

if TYPE_CHECKING:
    from arctic_hydra.checkpoint.base import Stateful, TrainingState
    from arctic_hydra.distributed import World


CURVE = 2
"""Version of the learning-rate curves; before 2, the last step had the value at the end of the curve."""
log = logging.getLogger(__name__)


def rank_contents(state: TrainingState) -> dict[str, Any]:
    """Return the contents of the file of this rank in a checkpoint."""
    contents: dict[str, Any] = {
        "random": random_state(),
        "schedule": schedule_state(state.scheduler),
        "micro_steps": int(state.engine.micro_steps),
        "interval": dict(state.since_last_log),
    }
    if state.stream is not None and state.world.is_main:
        contents["stream"] = state.stream.state_dict(state.progress.epoch_step)
    states = {name: callback.state_dict() for name, callback in state.callbacks.items()}
    if kept := {name: held for name, held in states.items() if held}:
        contents["callbacks"] = kept
    return contents


def load_callbacks(callbacks: Mapping[str, Stateful], states: dict[str, dict[str, Any]]) -> None:
    """Load the state of each callback that has one in the checkpoint."""
    for name, held in states.items():
        if name in callbacks:
            callbacks[name].load_state_dict(held)


def state_in(checkpoint: Path, name: str, world: World) -> dict[str, Any]:
    """Return what `name` among the callbacks has saved on this rank, or on rank 0 if another number of ranks saved; empty for nothing."""
    files = sorted(checkpoint.glob("rank-*.pt"))
    contents = load_tensors(files[world.rank if len(files) == world.size else 0])
    return contents.get("callbacks", {}).get(name, {})  # type: ignore[no-any-return]


def reseed(step: int) -> None:
    """Seed every RNG from the seed of the rank and `step`, so that a resumed run does not repeat earlier random numbers."""
    seed_everything((torch.initial_seed() + 1_000_003 * (step + 1)) % 2**32)


def schedule_state(scheduler: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """Return the state of the scheduler and the current learning rates, which loading a scheduler does not set."""
    return {
        "scheduler": _plain(scheduler.state_dict()),
        "learning_rates": [float(group["lr"]) for group in scheduler.optimizer.param_groups],
        "curve": CURVE,
    }


def set_schedule_state(scheduler: torch.optim.lr_scheduler.LRScheduler, state: dict[str, Any]) -> None:
    """Restore the scheduler and the learning rate of each parameter group."""
    if state.get("curve") != CURVE:
        log.warning(
            "the checkpoint comes from a version whose learning rates reached the end of their curve in the last step; they now "
            "continue on the present curve, which would reach it one step later"
        )
    scheduler.load_state_dict(state["scheduler"])
    set_learning_rates(scheduler.optimizer, state["learning_rates"])


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Set the learning rate of each parameter group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def redistribute_interval(intervals: list[dict[str, Any]], ranks: int) -> dict[str, Any]:
    """Return the sums since the last log line for each of `ranks` ranks, from those saved by another number of ranks.

    `loss_sum`, `flops` and the values of `figures` are sums over the batches of one rank, those of `minima` and `maxima` are of one
    rank; all other values are equal on all ranks.
    """
    first = intervals[0]
    own = {name: sum(held[name] for held in intervals) / ranks for name in ("loss_sum", "flops") if first}
    for kind, join in (("figures", lambda values: sum(values) / ranks), ("minima", min), ("maxima", max)):
        if kind in first:
            own[kind] = {name: join([held[kind][name] for held in intervals]) for name in first[kind]}
    return first | own


def _plain(value: Any) -> Any:
    """Return a copy of nested containers with numpy scalars as Python numbers, for `weights_only=True`."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, numpy.generic) else value
