"""What a trainer knows about its run: counters, horizon, tools and callbacks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra import distributed
from arctic_hydra.callback.base import Callback, fire
from arctic_hydra.component import CAUSAL_LM, Component
from arctic_hydra.data.base import Loader
from arctic_hydra.data.batch import StepBatch
from arctic_hydra.patterns import matching
from arctic_hydra.progress import Progress
from arctic_hydra.trainer.loop_state import LoopState, StepResult
from arctic_hydra.trainer.settings import TrainerSettings
from arctic_hydra.trainer.toolbox import Toolbox

if TYPE_CHECKING:
    import torch

log = logging.getLogger("arctic_hydra.trainer")


@dataclass(kw_only=True)
class TrainerState(TrainerSettings):
    """The state of a trainer, and its setup by the runner."""

    auto_class: ClassVar[str] = CAUSAL_LM
    """Name of the class of transformers that creates the kind of model that this trainer trains."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.zero_stage = 0  # of the run's engine, set by `Run.attach`
        self.initial_weights: str | None = None  # the run's init_from, set by `Run.attach`
        self._loop = LoopState(callbacks=[], world=distributed.World.from_env())
        self.stop_reason = ""
        """Why the run stops early, once all ranks have agreed to stop; otherwise empty."""
        self.last_metrics: dict[str, Any] = {}
        """The last log line of a step; empty before the first."""
        self.last_evaluation: dict[str, Any] = {}
        """The last evaluation and its `step`; empty before the first."""

    @property
    def epochs_left(self) -> Iterator[int]:
        """Epoch numbers, starting with the current one, until the horizon is reached or the run stops."""
        while not self.training_finished and not self.stop_reason:
            yield self.progress.epoch

    @property
    def train_batches(self) -> Iterator[StepBatch]:
        """This rank's windows in the current epoch, starting at the current position."""
        if self.overfit_first_batch:
            first = next(iter(self.tools.loader.windows(0, 0)))
            for _ in range(self.progress.epoch_step, self.tools.loader.steps(self.progress.epoch)):
                yield first
        else:
            yield from self.tools.loader.windows(self.progress.epoch, self.progress.epoch_step)

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.world.device

    @property
    def world(self) -> distributed.World:
        """This rank among all."""
        return self._loop.world

    @property
    def training_horizon(self) -> int:
        """Optimizer steps of the whole run, including incomplete last windows of epochs."""
        return self._loop.horizon

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the schedule's warm-up."""
        return self._loop.warmup_steps

    @property
    def global_step(self) -> int:
        """Optimizer steps completed."""
        return self.progress.global_step

    @property
    def progress(self) -> Progress:
        """The counters of the run; all 0 until a checkpoint is loaded."""
        return self._loop.progress

    @property
    def step_result(self) -> StepResult:
        """The step in progress, or the last one; new for each step.

        A `step` with an optimizer of its own sets `applied` and `grad_norm`, and adds figures to `metrics`.
        """
        return self._loop.result

    @property
    def export_verdicts(self) -> dict[str, dict[str, Any]]:
        """What the verification of the exports found, by name of the export; empty on all ranks but the first."""
        return self._loop.verdicts

    @property
    def head_loss_name(self) -> str:
        """Which `head_loss` computes the loss from the hidden states; `full` if all logits are computed at once."""
        return "full"

    @property
    def reads_head_weight(self) -> bool:
        """Whether the loss uses the output head's weight directly, bypassing any adapter on the head."""
        return False

    def frozen_models(self, model: torch.nn.Module) -> int:
        """Return how many further copies of the model this trainer holds without training them, for the memory estimate."""
        return 0

    def frozen_bytes(self, model: torch.nn.Module) -> int:
        """Return the size of the weights that this trainer holds without training them, for the memory estimate."""
        weights: int = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
        return self.frozen_models(model) * weights

    def scoring_models(self, model: torch.nn.Module) -> int:
        """Return how many further copies of the model are in memory while scores are stored before the first step."""
        return 0

    def scoring_bytes(self, model: torch.nn.Module) -> int:
        """Return the size of the weights that are in memory only while scores are stored, for the memory estimate."""
        weights: int = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
        return self.scoring_models(model) * weights

    @property
    def training_finished(self) -> bool:
        """Whether the run has reached its horizon, or a callback has finished it."""
        return self.global_step >= self._loop.horizon or bool(self._loop.ended)

    def set_callbacks(self, callbacks: list[Callback], world: distributed.World) -> None:
        """Set the callbacks; called first, so that they receive every event."""
        self._loop.callbacks, self._loop.world = callbacks, world

    def plan(self, loader: Loader, warmup: Any) -> int:
        """Compute the training horizon from the loader, before model and scheduler exist, and return it."""
        steps = sum(loader.steps(epoch) for epoch in range(self.epochs))
        if self.epochs == 0:
            steps = self.train_iters
        steps = max(steps, self.min_iterations)
        self._loop.horizon = min(steps, self.train_iters) if self.train_iters else steps
        self._loop.warmup_steps = int(warmup(self._loop.horizon))
        return self._loop.horizon

    def set_warmup(self, steps: int) -> None:
        """Set the number of warmup steps of a run that extends another one, which is known only then."""
        self._loop.warmup_steps = steps

    def setup(self, tools: Toolbox) -> None:
        """Set the objects that the runner built; called once, before `train`."""
        self.tools = tools
        self._loop.progress = tools.state.progress
        self._loop.ended = self.stop_reason = tools.state.ended
        self.last_evaluation = tools.state.evaluation
        self._loop.evaluated_at = int(tools.state.evaluation.get("step", -1))
        self._loop.first_step, self._loop.started = tools.state.progress.global_step, time.monotonic()

    @contextmanager
    def with_fake_tensors(self, model: torch.nn.Module) -> Iterator[None]:
        """Let `loss` run on fake tensors without an engine, for the memory estimate; called before `setup`.

        Attributes that it sets, which may be fake tensors, are dropped.
        """
        held = dict(vars(self))
        self.tools = SimpleNamespace(engine=model)  # type: ignore[assignment]
        try:
            yield
        finally:
            vars(self).clear()
            vars(self).update(held)

    def notify(self, event: str, component: Component, facts: dict[str, Any]) -> None:
        """Call `on_<event>` of every callback; a value that one returns replaces one of the facts."""
        facts["component"] = component
        before = self._loop.asked
        fire(self._loop.callbacks, event, self, facts)  # type: ignore[arg-type]  # every trainer derives from this class
        if self._loop.asked != before and self._loop.asked[1]:
            heard = self.listeners(event)
            if heard and all(callback.only_observes for callback in heard):
                log.warning(
                    "%s finished the run, but only observes, so that the same command without it takes this run as finished; set "
                    "`only_observes: ClassVar[bool] = False` in the class",
                    " or ".join(type(callback).__name__ for callback in heard),
                )

    def listeners(self, event: str) -> list[Callback]:
        """Return the callbacks that define `on_<event>`."""
        return [callback for callback in self._loop.callbacks if hasattr(callback, f"on_{event}")]

    def stop(self, reason: str, *, finished: bool = False) -> None:
        """End the run before its next step; any code may call it at any time, on one rank or on several.

        All ranks agree on it when the next step begins. With `finished` the run ends as at its horizon: it is evaluated,
        saved and exported, and the same command does not continue it. Otherwise it stops with a resumable checkpoint, and
        the same command continues. Only the first call counts, and a signal comes before it.
        """
        self._loop.asked = self._loop.asked if self._loop.asked[0] else (reason, finished)

    @contextmanager
    def weights(self, *patterns: str, writes: bool = False) -> Iterator[dict[str, torch.Tensor]]:
        """Yield whole weights by name: a copy in fp32 on the device of this rank, at every ZeRO stage; collective.

        `patterns` are regular expressions that are searched for in the names of parameters; without any, all are meant. The
        weights are those that the optimizer updates. With `writes`, what rank 0 changes in place becomes the weights of all
        ranks and survives later steps; otherwise changes are dropped. Every rank must enter and leave the context; between
        steps, and in a converter's `post_optimizer_hook`. Raises ConfigError for a pattern that matches no parameter.
        """
        from arctic_hydra.callback.master_weights import whole

        names = [name for name, _ in self.tools.engine.module.named_parameters()]
        chosen = matching("trainer.weights", list(patterns), names) if patterns else names
        with whole(self.tools.engine, [name for name in names if name in chosen], writes=writes) as values:
            yield values
