"""Checkpoint engines: when to save, and the contract that each engine fills."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from arctic_hydra.component import Component
from arctic_hydra.distributed import World
from arctic_hydra.errors import CheckpointError
from arctic_hydra.human_numbers import HumanInt, format_count, integer
from arctic_hydra.progress import Progress

if TYPE_CHECKING:
    import deepspeed
    import torch
    from transformers import PreTrainedTokenizerBase


@runtime_checkable
class Stream(Protocol):
    """Data whose place is more than a number of steps; the same on every rank."""

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return what another stream needs to go on after `step` steps of the epoch: tensors, numbers, lists and dicts."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""


@dataclass
class TrainingState:
    """What a checkpoint engine reads and writes; one object, shared with the trainer that moves it on."""

    engine: deepspeed.DeepSpeedEngine
    """The DeepSpeed engine; its `.module` is the model (or its PEFT wrapper)."""
    scheduler: torch.optim.lr_scheduler.LRScheduler
    tokenizer: PreTrainedTokenizerBase
    progress: Progress
    world: World
    run_dir: Path
    identity: dict[str, Any]
    """What the run is, JSON-able: at least `config_hash`, `data_fingerprint`, `versions`, `zero_stage`."""
    logs: list[Path] = field(default_factory=list)
    """Append-only files whose length is recorded at save and cut back at load, so that each step stands once."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The last evaluation and its `step`; empty before the first."""
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the last steps, while a loss-spike guard is on."""
    interval: dict[str, Any] = field(default_factory=dict)
    """This rank's figures since the last log line, as of the save; empty in a new run."""
    stream: Stream | None = None
    """The training data, where it is streamed."""
    epoch_finished: bool = False
    """Whether the last completed step ended an epoch."""
    training_finished: bool = False
    """Whether the last step of the run is done."""
    stopping: bool = False
    """Whether the run is about to stop early (signal, kill switch, exit_iteration) and needs a resumable state."""
    base: str | None = None
    """Directory or hub id from which transformers loads the weights that an adapter was trained over, if there is one."""
    frozen_elsewhere: bool = False
    """Whether frozen weights are read again, from where they came, at every start: checkpoints leave them out then."""
    rebuild: Callable[[], torch.nn.Module] | None = None
    """Makes the model once more as it was before its first step, whole, unquantised and on the CPU; draws random numbers."""
    stop_tokens: Callable[[], list[int]] = list
    """Returns the ids of the tokens that turns were trained to end in, as far as is known at the time."""


@dataclass(kw_only=True)
class CheckpointEngine(Component):
    """Base of the checkpoint engines; several may run side by side, keyed by name under `checkpoint`.

    `save()` and `load()` are collective: every rank calls them, at the same step.
    """

    enabled: bool = True
    """Whether this engine saves at all."""
    auto_resume: bool = False
    """Whether a run that finds checkpoints of this engine in its directory resumes from them; at most one may."""

    can_resume: ClassVar[bool] = False
    """Whether `load()` restores a run exactly."""

    def bind(self, state: TrainingState) -> None:
        """Take the state to save from and load into; called once, before `load` and `save`."""
        self.state = state

    def directory_of(self, run_dir: Path) -> Path:
        """Return the directory that this engine writes to for the run in `run_dir`."""
        return run_dir

    @property
    def epoch_finished(self) -> bool:
        """Whether the last completed step ended an epoch."""
        return self.state.epoch_finished

    @property
    def training_finished(self) -> bool:
        """Whether the last step of the run is done."""
        return self.state.training_finished

    @property
    @abstractmethod
    def do_checkpoint(self) -> bool:
        """Whether to save now; asked at every step boundary, after the counters moved."""

    @property
    @abstractmethod
    def checkpoint_dir(self) -> Path:
        """The directory that the next `save()` publishes."""

    @property
    @abstractmethod
    def latest_checkpoint_exists(self) -> bool:
        """Whether there is any checkpoint of this engine to consider."""

    @abstractmethod
    def save(self) -> Path | None:
        """Write the state under `checkpoint_dir` and return that path; nothing incomplete is ever visible there.

        None where it could not be saved and the run is to go on without.
        """

    @property
    def save_ready(self) -> bool:
        """Whether a save in the background waits on this rank for `finish_save`; asked before every step."""
        return False

    def finish_save(self) -> None:
        """Complete a save in the background, waiting for it; collective.

        The trainer calls it once `save_ready` is true on all ranks, and before the run ends or stops.
        """

    def needed_bytes(self, parameters: int, trainable: int, bytes_per_parameter: int) -> int:
        """Return about how much free disk the saves of a run take at most, all together."""
        return 0

    @property
    def root(self) -> Path:
        """The directory below which this engine writes."""
        return self.state.run_dir

    @abstractmethod
    def load(self) -> Path | None:
        """Restore the newest good checkpoint and return its path, or None when there is none at all."""


@dataclass(kw_only=True)
class TriggeredCheckpoint(CheckpointEngine):
    """The triggers that the built-in engines share: any of them saves, 0 is off."""

    save_every_n_steps: HumanInt = integer(0, minimum=0)
    """Optimizer steps between saves."""
    save_every_n_epochs: HumanInt = integer(0, minimum=0)
    """Epochs between saves: after epochs n, 2n, ..."""
    save_end_of_training: bool = False
    """Save once the last step is done."""
    output_dir: str | None = None
    """Directory to write below, as `<output_dir>/<name>/<id>`; the run directory when unset."""

    def bind(self, state: TrainingState) -> None:
        """Take the state to save from and load into; called once, before `load` and `save`."""
        super().bind(state)
        self._saved: tuple[int, Path] | None = None

    @property
    def root(self) -> Path:
        """The directory below which this engine writes."""
        return self.directory_of(self.state.run_dir)

    def directory_of(self, run_dir: Path) -> Path:
        """Return the directory that this engine writes to: runs that share an `output_dir` stay apart."""
        return Path(self.output_dir) / run_dir.parent.name / run_dir.name if self.output_dir else run_dir

    def mark_saved(self) -> None:
        """Remember that the current step is on disk, by a save or because it was loaded: no trigger saves it again."""
        self._saved = (self.state.progress.global_step, self.checkpoint_dir)

    @property
    def do_checkpoint(self) -> bool:
        """Whether any trigger holds for the step just completed; never twice for one step and directory.

        An engine that can resume also saves when the run stops early, whatever its triggers say.
        """
        progress = self.state.progress
        if not self.enabled or progress.global_step == 0:
            return False
        if self._saved == (progress.global_step, self.checkpoint_dir):
            return False
        steps, epochs = self.save_every_n_steps, self.save_every_n_epochs
        return (
            bool(steps and progress.global_step % steps == 0)
            or bool(epochs and self.epoch_finished and progress.epoch % epochs == 0)
            or (self.save_end_of_training and self.training_finished)
            or (self.can_resume and self.state.stopping)
        )


def check_space(engines: Iterable[CheckpointEngine], parameters: int, trainable: int, bytes_per_parameter: int) -> None:
    """Refuse, before training, a disk that will not hold what the checkpoint engines are going to write."""
    needed: dict[int, tuple[Path, int]] = {}
    for engine in engines:
        if engine.enabled:
            size = engine.needed_bytes(parameters, trainable, bytes_per_parameter)
            root = next(path for path in (engine.root, *engine.root.parents) if path.exists())
            device = root.stat().st_dev
            needed[device] = (root, needed.get(device, (root, 0))[1] + size)
    for root, size in needed.values():
        free = shutil.disk_usage(root).free
        if free < size:
            raise CheckpointError(
                f"checkpoint: {free / 2**30:.3g} GiB are free at {root}, but about {size / 2**30:.3g} GiB are needed for "
                f"{format_count(parameters)} parameters; free space, lower checkpoint.deepspeed.keep_last, or pass "
                "checkpoint.<engine>.output_dir=<a larger disk>"
            )
