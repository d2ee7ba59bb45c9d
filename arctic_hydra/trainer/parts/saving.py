"""Saving the last whole step after an error.

An error before the optimizer step leaves weights, optimizer and counters as they were after the step before. They can be saved
if no rank waits in a collective that another will never join: on a single rank, or if all ranks fail in the same step and
have issued the same collectives. The ranks agree on that through torch's store, without a collective.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra import distributed
from arctic_hydra.determinism import random_state, set_random_state
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.trainer.loop_state import LogSums

if TYPE_CHECKING:
    import torch

    from arctic_hydra.data.batch import StepBatch
    from arctic_hydra.trainer.base import Trainer

log = logging.getLogger("arctic_hydra.trainer")

WAIT_SECONDS = 5.0
"""Time that a failed rank waits for the others to fail in the same step; less than they wait for it in a collective."""


class KeptState:
    """A state as it is now. Its tensors are not copied, which a second model would make slow; their versions tell of changes."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._tensors: list[torch.Tensor] = []
        self.state = _copied(state, self._tensors)
        self._versions = [tensor._version for tensor in self._tensors]

    @property
    def is_intact(self) -> bool:
        """Whether no tensor has changed in place."""
        return self._versions == [tensor._version for tensor in self._tensors]


def _copied(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return a copy of nested containers; the tensors in them, which are not copied, are appended to `tensors`."""
    import torch

    if isinstance(value, dict):
        made = copy(value)  # also of the attributes of a state dict
        for key, item in value.items():
            made[key] = _copied(item, tensors)
        return made
    if isinstance(value, list | tuple):
        return type(value)([_copied(item, tensors) for item in value])
    if isinstance(value, torch.Tensor) and not value.is_inference():  # others have no version
        tensors.append(value)
    return value


@dataclass(frozen=True)
class StepStart:
    """Snapshot, at the start of a step, of the state that the step changes before its optimizer step."""

    step: int
    """Steps completed before."""
    random: dict[str, Any]
    micro_steps: int
    optimizer_steps: int
    schedule_steps: int
    sums: LogSums
    recent_losses: list[float]
    callbacks: dict[str, KeptState]

    @classmethod
    def of(cls, trainer: Trainer) -> StepStart:
        """Return the present state; does not synchronize with the device."""
        state, sums = trainer.tools.state, trainer._loop.totals
        return cls(
            step=trainer.global_step,
            random=random_state(),
            micro_steps=int(state.engine.micro_steps),
            optimizer_steps=int(state.engine.global_steps),
            schedule_steps=int(trainer.tools.scheduler.last_epoch),
            sums=replace(sums, by_source=Counter(sums.by_source)),
            recent_losses=list(state.recent_losses),
            callbacks={name: KeptState(callback.state_dict()) for name, callback in state.callbacks.items()},
        )

    def restore(self, trainer: Trainer) -> None:
        """Restore that state, and drop the gradients."""
        state = trainer.tools.state
        state.engine.zero_grad()
        state.engine.micro_steps = self.micro_steps
        state.since_last_log = self.sums.state_dict()
        state.recent_losses = list(self.recent_losses)
        for name, kept in self.callbacks.items():
            state.callbacks[name].load_state_dict(kept.state)
        set_random_state(self.random)


class OwnState:
    """The additional state of a subclass in checkpoints; a loaded one is kept until `setup` has created what it belongs to."""

    bytes_per_parameter: ClassVar[int] = 0

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._held: dict[str, Any] = {}
        self._is_set_up = False

    def state_dict(self) -> dict[str, Any]:
        """Return the trainer's state."""
        return self._trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state, or keep it until `set_up`."""
        if self._is_set_up:
            self._trainer.load_state_dict(state)
        else:
            self._held = dict(state)

    def set_up(self) -> None:
        """Load the state that was kept; called after the trainer's `setup`."""
        self._is_set_up = True
        if self._held:
            self._trainer.load_state_dict(self._held)


def resumable_steps(trainer: Trainer) -> Iterator[StepBatch]:
    """Yield the windows of `train_batches`; before each is read, the trainer notes the state to which an error returns."""
    windows = iter(trainer.train_batches)
    while True:
        trainer._loop.step_start = StepStart.of(trainer)
        window = next(windows, None)
        if window is None:
            break
        yield window
    trainer._loop.step_start = None


def size_mib(path: Path | None) -> int:
    """Return the size of a saved directory in MiB, rounded up; 0 if nothing is there, as of a save in the background."""
    total = 0
    with suppress(OSError):  # the size is only shown
        for file in path.rglob("*") if path is not None else ():
            total += file.stat().st_size if file.is_file() else 0
    return -(-total // 2**20)


def save_after(error: Exception, trainer: Trainer) -> None:
    """Save the last whole step if the ranks can after `error`, which ends the run; add a note to the error that says what was saved.

    Never raises. Bounded in time: it waits `WAIT_SECONDS` for the other ranks, and then as long as any save takes.
    """
    try:
        note = _save(error, trainer)
    except Exception as problem:
        log.debug("saving after an error failed", exc_info=True)
        note = f"the last whole step was not saved ({type(problem).__name__}: {problem}); {_what_holds(trainer)}"
    error.add_note(note)
    if trainer.world.is_main:
        log.error("%s", note)


def _save(error: Exception, trainer: Trainer) -> str:
    start = trainer._loop.step_start
    state = trainer.tools.state
    engines = [engine for engine in trainer.tools.checkpoints if engine.enabled and engine.can_resume]
    if not engines:
        return "nothing was saved: no checkpoint engine of this run can resume it"
    state.stopping = True  # an engine that can resume saves then, unless it has saved this step
    if trainer.global_step and all(engine.checkpoint_dir.exists() and not engine.do_checkpoint for engine in engines):
        return f"step {trainer.global_step} is saved already; {_same_command(trainer)} resumes from it"
    now = state.engine.global_steps, trainer.tools.scheduler.last_epoch
    stepped = start is not None and (start.optimizer_steps, start.schedule_steps) != now
    if start is None or stepped or start.step != trainer.global_step:
        return (
            f"nothing was saved, because the error was not before the optimizer step of a step; {_what_holds(trainer)}"
        )
    if start.step == 0:
        return "nothing was saved, because no step is completed; the same command starts over"
    if changed := [name for name, kept in start.callbacks.items() if not kept.is_intact]:
        return (
            f"nothing was saved, because the step had changed tensors in the state of {' and '.join(changed)} before the error; "
            f"{_what_holds(trainer)}"
        )
    wait_seconds = min(WAIT_SECONDS, trainer.collective_timeout_seconds / 5)
    if not distributed.failed_alike(str(start.step), wait_seconds):
        return f"nothing was saved, because not all ranks failed in the same way; {_what_holds(trainer)}"
    start.restore(trainer)
    state.error = f"{type(error).__name__}: {error}"
    if trainer.tools.metrics_file is not None:
        trainer.tools.metrics_file.sync()
    for engine in engines:
        engine.finish_save()
        if engine.do_checkpoint:
            engine.save()
    return f"step {start.step}, the last whole one, is saved; {_same_command(trainer)} resumes from it"


def _what_holds(trainer: Trainer) -> str:
    """Return what repeating the command will do with the existing checkpoints."""
    engines = [engine for engine in trainer.tools.checkpoints if engine.can_resume]
    if any(engine.latest_checkpoint_exists for engine in engines):
        return f"{_same_command(trainer)} resumes from the last checkpoint"
    return "there is no checkpoint, so the same command starts over"


def _same_command(trainer: Trainer) -> str:
    return RunDirectory(trainer.tools.run_dir).same_command
