"""Base of the checkpoint engines: the interface of an engine, its state, and the triggers for saving."""

from __future__ import annotations

import json
import logging
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from arctic_hydra.checkpoint.store import MANIFEST, Checkpoint
from arctic_hydra.component import Component
from arctic_hydra.distributed import World
from arctic_hydra.errors import CheckpointError, ConfigError
from arctic_hydra.files.state_file import Table, at_least_0, mismatch
from arctic_hydra.human_numbers import HumanInt, format_count, integer
from arctic_hydra.progress import Progress
from arctic_hydra.run_directory import RunDirectory, below

if TYPE_CHECKING:
    import deepspeed
    import torch
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger("arctic_hydra.checkpoint")

RESUMABLE = Table(
    {
        "world_size": int,
        "identity": dict,
        "progress": Table({item.name: at_least_0 for item in fields(Progress)}),
        "evaluation": dict,
        "recent_losses": list,
        "log_offsets": dict,
    },
    {"extended_at": at_least_0},
)
"""The facts in a manifest that resuming needs."""
MUST_MATCH = ("config_hash", "data_fingerprint", "zero_stage", "frozen_weights")


@runtime_checkable
class Stream(Protocol):
    """Training data whose position is not just a number of steps; the same on every rank."""

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return the position after `step` steps of the epoch, as tensors, numbers, lists and dicts."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the position in `state`."""


class Stateful(Protocol):
    """A callback, as far as checkpoints are concerned."""

    bytes_per_parameter: ClassVar[int]
    """Size of its state per trained parameter."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank; empty if there is none."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""


@dataclass
class TrainingState:
    """The state that checkpoint engines save and restore; one object, shared with the trainer, which updates it."""

    engine: deepspeed.DeepSpeedEngine
    """The DeepSpeed engine; its `.module` is the model (or its PEFT wrapper)."""
    scheduler: torch.optim.lr_scheduler.LRScheduler
    tokenizer: PreTrainedTokenizerBase
    progress: Progress
    world: World
    run_dir: Path
    identity: dict[str, Any]
    """Identity of the run as JSON values: at least `config_hash`, `data_fingerprint`, `versions`, `zero_stage`."""
    logs: list[Path] = field(default_factory=list)
    """Append-only files, truncated on load to their length at the save, so that each step appears once."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last evaluation and its `step`; empty before the first."""
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the last steps, if loss spikes are detected."""
    since_last_log: dict[str, Any] = field(default_factory=dict)
    """This rank's sums since the last log line, as of the save; empty in a new run."""
    stream: Stream | None = None
    """The training data if it is streamed."""
    epoch_finished: bool = False
    """Whether the last completed step ended an epoch."""
    training_finished: bool = False
    """Whether the last step of the run is completed."""
    stopping: bool = False
    """Whether the run is about to stop early (signal, kill switch, exit_iteration) and needs a checkpoint to resume from."""
    ended: str = ""
    """Why the run ends normally before its horizon; empty if it does not."""
    extends: Path | None = None
    """The directory of the run whose newest checkpoint a run without one of its own continues."""
    extended_at: int = 0
    """Optimizer steps of the run that this one extends; 0 if it extends none."""
    callbacks: Mapping[str, Stateful] = field(default_factory=dict)
    """The callbacks of the run by name; checkpoints contain the state of each."""
    error: str = ""
    """The error after which the last whole step is saved; empty if there is none."""
    base: str | None = None
    """Directory or hub id of the base model of an adapter; None if transformers cannot load that model from anywhere."""
    omits_frozen_weights: bool = False
    """Whether every start loads the frozen weights from their original files, so that checkpoints omit them."""
    create_initial_model: Callable[[], torch.nn.Module] | None = None
    """Creates the initial model again: not partitioned, not quantized, on the CPU. Draws random numbers."""
    stop_tokens: Callable[[], list[int]] = list
    """Returns the ids of the stop tokens in the training data, as far as known so far."""


@dataclass(kw_only=True)
class CheckpointEngine(Component):
    """Base of the checkpoint engines; a run may have several, keyed by name under `checkpoint`.

    `save()` and `load()` are collective: every rank calls them, at the same step.
    """

    enabled: bool = True
    """Whether this engine saves."""
    auto_resume: bool = False
    """Whether a run resumes from checkpoints of this engine in its directory; at most one engine may."""

    can_resume: ClassVar[bool] = False
    """Whether `load()` restores the full state of a run."""

    def bind(self, state: TrainingState) -> None:
        """Take the state to save from and load into; called once, before `load` and `save`."""
        self.state = state

    def directory_of(self, run_dir: Path) -> Path:
        """Return the directory below which this engine writes for the run in `run_dir`."""
        return run_dir

    @property
    def epoch_finished(self) -> bool:
        """Whether the last completed step ended an epoch."""
        return self.state.epoch_finished

    @property
    def training_finished(self) -> bool:
        """Whether the last step of the run is completed."""
        return self.state.training_finished

    @property
    @abstractmethod
    def do_checkpoint(self) -> bool:
        """Whether to save now; read after every optimizer step, when the counters are updated."""

    @property
    @abstractmethod
    def checkpoint_dir(self) -> Path:
        """The directory that the next `save()` creates."""

    @property
    @abstractmethod
    def latest_checkpoint_exists(self) -> bool:
        """Whether there is any checkpoint of this engine."""

    @abstractmethod
    def save(self) -> Path | None:
        """Write the state to `checkpoint_dir` and return that path; the directory appears only when it is complete.

        Returns None if saving failed and training is to continue without this checkpoint.
        """

    @property
    def save_ready(self) -> bool:
        """Whether this rank has written its files of a background save, so that `finish_save` can publish it."""
        return False

    def finish_save(self) -> None:
        """Wait for the background save and publish it; collective.

        The trainer calls this once `save_ready` is true on all ranks, and before the run ends or stops.
        """

    def needed_bytes(self, parameters: int, trainable: int, bytes_per_parameter: int) -> int:
        """Return an estimate of the disk space in bytes that all saves of the run need together."""
        return 0

    @property
    def has_trigger(self) -> bool:
        """Whether this engine may save at all."""
        return True

    @property
    def step_interval(self) -> int:
        """Optimizer steps between saves; 0 where they do not come at regular steps."""
        return 0

    @property
    def epoch_interval(self) -> int:
        """Epochs between saves; 0 where they do not come at the ends of epochs."""
        return 0

    @property
    def best_kept(self) -> int:
        """How many of the best checkpoints this engine keeps, by an evaluation metric."""
        return 0

    def check_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Raise ConfigError if this engine ranks checkpoints by a metric that the evaluation does not have."""

    @property
    def root(self) -> Path:
        """The directory below which this engine writes."""
        return self.state.run_dir

    @abstractmethod
    def load(self) -> Path | None:
        """Restore the newest valid checkpoint and return its path, or None if there are no checkpoints."""


@dataclass(kw_only=True)
class TriggeredCheckpoint(CheckpointEngine):
    """Triggers of the built-in engines. Each trigger saves independently; 0 disables it."""

    save_every_n_steps: HumanInt = integer(0, minimum=0)
    """Optimizer steps between saves."""
    save_every_n_epochs: HumanInt = integer(0, minimum=0)
    """Epochs between saves: after epochs n, 2n, ..."""
    save_end_of_training: bool = False
    """Save after the last step."""
    output_dir: str | None = None
    """Base directory for this engine's files, in `<output_dir>/<name>/<id>`; the run directory when unset."""

    def bind(self, state: TrainingState) -> None:
        """Take the state to save from and load into; called once, before `load` and `save`."""
        super().bind(state)
        self._saved: tuple[int, Path] | None = None

    @property
    def root(self) -> Path:
        """The directory below which this engine writes."""
        return self.directory_of(self.state.run_dir)

    def directory_of(self, run_dir: Path) -> Path:
        """Return the directory below which this engine writes; runs that share an `output_dir` get separate ones."""
        return below(Path(self.output_dir), run_dir) if self.output_dir else run_dir

    @property
    def has_trigger(self) -> bool:
        """Whether any trigger is set, or a subclass decides on its own when to save."""
        decides = type(self).do_checkpoint is not TriggeredCheckpoint.do_checkpoint
        return decides or bool(self.save_every_n_steps or self.save_every_n_epochs or self.save_end_of_training)

    @property
    def step_interval(self) -> int:
        """Optimizer steps between saves; 0 where they do not come at regular steps."""
        return self.save_every_n_steps

    @property
    def epoch_interval(self) -> int:
        """Epochs between saves; 0 where they do not come at the ends of epochs."""
        return self.save_every_n_epochs

    def mark_saved(self) -> None:
        """Record that the current step was saved or loaded, so that no trigger saves it again."""
        self._saved = (self.state.progress.global_step, self.checkpoint_dir)

    @property
    def do_checkpoint(self) -> bool:
        """Whether a trigger fires for the step just completed; at most once per step and directory.

        An engine that can resume also saves when the run stops early, independent of its triggers. Before the first step,
        only the end of a run is saved, which a callback can bring about.
        """
        progress = self.state.progress
        if not self.enabled or self._saved == (progress.global_step, self.checkpoint_dir):
            return False
        at_end = self.save_end_of_training and self.training_finished
        if progress.global_step == 0:
            return at_end
        steps, epochs = self.save_every_n_steps, self.save_every_n_epochs
        return (
            at_end
            or bool(steps and progress.global_step % steps == 0)
            or bool(epochs and self.epoch_finished and progress.epoch % epochs == 0)
            or (self.can_resume and self.state.stopping)
        )


def check_space(engines: Iterable[CheckpointEngine], parameters: int, trainable: int, bytes_per_parameter: int) -> None:
    """Raise CheckpointError before training if a disk is too small for the files of the checkpoint engines."""
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
                "checkpoint.<engine>.output_dir=<a larger disk>, to which earlier checkpoints of the run are moved first"
            )


def check_identity(found: Checkpoint, state: TrainingState, extended: Path | None = None) -> None:
    """Compare the identities of a checkpoint and of this run, or with `extended`, of the run in that directory.

    The result is the same on every rank. Raises CheckpointError, or ConfigError for a run that cannot be extended.
    """
    if problem := mismatch(found.manifest, RESUMABLE):
        raise CheckpointError(
            f"{found.path / MANIFEST}: {problem}; another program wrote it. Move that directory away to resume from the "
            "previous checkpoint, or pass fresh=true to start over"
        )
    then, now = found.manifest["identity"], json.loads(json.dumps(state.identity))
    if extended is not None:
        # Its directory may have been renamed.
        now["config_hash"] = RunDirectory(extended).record().get("config_hash", extended.name)
    differing = [key for key in MUST_MATCH if then.get(key) != now.get(key)]
    if differing:
        values = "; ".join(f"{key}: checkpoint {then.get(key)!r}, this run {now.get(key)!r}" for key in differing)
        if extended is not None:
            raise ConfigError(
                f"extend: {found.path} does not fit this run: {values}. Use the data and weights it was saved with, or pass "
                f"init_from={extended} instead of extend, which takes its weights only"
            )
        raise CheckpointError(
            f"{found.path} was saved by a different run: {values}. "
            "Use the config, data and global batch size it was saved with, or pass fresh=true to start over"
        )
    _warn_of_versions(found.path, then.get("versions", {}), now.get("versions", {}), state.world.is_main)


def _warn_of_versions(path: Path, before: dict[str, Any], here: dict[str, Any], is_main: bool) -> None:
    changed = [name for name in before | here if before.get(name) != here.get(name)] if before else []
    if changed and is_main:
        words = ", ".join(f"{name} {before.get(name)} -> {here.get(name)}" for name in changed)
        logger.warning("%s was saved with other versions (%s): resuming may not be bit-exact", path, words)
