"""Base of the trainers: the training loop.

`Trainer` splits the loop into methods that a subclass can override one by one: `loss` (abstract), `step`, `epoch`, `train`,
`evaluate`, `checkpoint`. A step is a completed optimizer step, counted from 1.
"""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from arctic_hydra import distributed
from arctic_hydra.callback.base import Callback
from arctic_hydra.component import Component
from arctic_hydra.data.base import Loader
from arctic_hydra.data.batch import Batch, StepBatch
from arctic_hydra.engine import optimizer_step
from arctic_hydra.errors import ArcticHydraError
from arctic_hydra.metrics import evaluation_metrics, memory_gib, model_flops, peak_tflops
from arctic_hydra.progress import Progress
from arctic_hydra.trainer.loop_state import LogSums, LoopState, StepResult
from arctic_hydra.trainer.settings import TrainerSettings
from arctic_hydra.trainer.spikes import describe_spike
from arctic_hydra.trainer.toolbox import Toolbox

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Trainer(TrainerSettings):
    """Base of the trainers; a subclass defines `loss` and declares by type hints which components it supports."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.zero_stage = 0  # of the run's engine, set by `Run.attach`
        self._loop = LoopState(callbacks=[], world=distributed.World.from_env())
        self.stop_reason = ""
        """Why the run stops early, once all ranks have agreed to stop; otherwise empty."""
        self.last_metrics: dict[str, Any] = {}
        """The last log line of a step; empty before the first."""
        self.last_evaluation: dict[str, Any] = {}
        """The last evaluation and its `step`; empty before the first."""

    # -- what a subclass defines -----------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the SUM of the losses of the micro-batch's supervised units, a scalar with a graph.

        `step` divides by the number of units over all micro-batches and ranks of the optimizer step, so every unit
        has the same weight wherever it occurs. A batch without units returns 0, still with a graph.
        """

    @abstractmethod
    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return float64 [num_sources, 3]: sum of losses, correct predictions and count, per data source."""

    # -- state of the run -----------------------------------------------------------------------------------------------

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
        return self.tools.device

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
        """The counters of the run."""
        return self.tools.state.progress

    @property
    def head_loss_name(self) -> str:
        """Which `head_loss` computes the loss from the hidden states; `full` if all logits are computed at once."""
        return "full"

    @property
    def reads_head_weight(self) -> bool:
        """Whether the loss uses the output head's weight directly, bypassing any adapter on the head."""
        return False

    @property
    def training_finished(self) -> bool:
        """Whether the run has reached its horizon."""
        return self.global_step >= self._loop.horizon

    # -- setup by the runner -----------------------------------------------------------------------------------------

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

    def setup(self, tools: Toolbox) -> None:
        """Set the objects that the runner built; called once, before `train`."""
        self.tools = tools
        self.last_evaluation = tools.state.evaluation
        self._loop.evaluated_at = int(tools.state.evaluation.get("step", -1))
        self._loop.first_step, self._loop.started = tools.state.progress.global_step, time.monotonic()

    @contextmanager
    def with_fake_tensors(self, model: torch.nn.Module) -> Iterator[None]:
        """Let `loss` run on fake tensors without an engine, for the memory estimate; called before `setup`."""
        self.tools = SimpleNamespace(engine=model)  # type: ignore[assignment]
        yield
        del self.tools

    def notify(self, event: str, component: Component, facts: dict[str, Any]) -> None:
        """Call `on_<event>` of every callback."""
        for callback in self._loop.callbacks:
            handler = getattr(callback, f"on_{event}", None)
            if handler is not None:
                handler(self, {"component": component, **facts})

    # -- the loop ------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train until the horizon, or until all ranks agree to stop."""
        with self.event("train"):
            self._check_exit()
            if (
                self.eval_at_start
                and self.global_step == 0
                and not distributed.sum_over_ranks([self._asked_to_stop()])[0]
            ):
                self.evaluate()
            self._loop.totals = LogSums.resumed(self.tools.state.since_last_log)
            for epoch in self.epochs_left:
                with self.event("epoch", epoch=epoch):
                    self.epoch()
            if self.training_finished:
                self._finish()

    def epoch(self) -> None:
        """Run the steps of the current epoch, from the current position until its end, the horizon or a stop."""
        for window in self.train_batches:
            counts = self._agree(window)
            if self.stop_reason:
                break
            with self.event("step", window=window):
                self.step(window, counts)
            self._advance(counts)
            self._log_if_due()
            if self.eval_frequency and self.global_step % self.eval_frequency == 0:
                self.evaluate()
            self._check_exit()
            if not self.training_finished:  # `_finish` saves after the last evaluation
                self.checkpoint()
            if self.stop_reason or self.training_finished:
                break
        if self.stop_reason:
            self.tools.state.stopping = True
            self.checkpoint()

    def step(self, window: StepBatch, counts: dict[str, int]) -> None:
        """Perform one optimizer step over the window's micro-batches; the loss is the mean over the units of all ranks."""
        units = counts["supervised"]
        result = self._loop.result = StepResult(learning_rate=float(self.tools.scheduler.get_last_lr()[0]))
        if units:
            self.tools.engine.train()
            last, window_loss = len(window.micro_batches) - 1, 0.0
            for index, batch in enumerate(window.micro_batches):
                with self.event("loss", batch=batch):
                    loss_sum = self.loss(batch.to(self.device))
                window_loss = window_loss + loss_sum.detach()
                scale = self.world.size / units
                if index == last and self.spike_sigmas and self._is_spike(window_loss, units):
                    scale = math.nan  # non-finite gradients make every ZeRO stage skip the step
                with self.event("backward", loss=loss_sum):
                    self.tools.engine.set_gradient_accumulation_boundary(index == last)
                    # DeepSpeed averages gradients over ranks; `scale` contains the number of ranks to get their sum.
                    self.tools.engine.backward(loss_sum * scale, scale_wrt_gas=False)
            self._loop.totals.loss_sum = self._loop.totals.loss_sum + window_loss
            result.grad_norm, result.applied = optimizer_step(self.tools.engine, self.tools.engine_config)
            if result.applied:
                for converter in self.tools.converters:
                    converter.post_optimizer_hook(self.tools.engine.module)
        self.tools.scheduler.step()
        for batch in window.micro_batches:  # the ranks of a sequence group divide the body's FLOPs
            body = model_flops(*self.tools.flops_shape, batch.document_lengths, 0)
            head = model_flops(*self.tools.flops_shape, [], batch.num_supervised)
            self._loop.totals.flops += body / self.sequence_parallel_size + head

    def evaluate(self) -> dict[str, Any]:
        """Return the token-weighted loss, perplexity and accuracy over all evaluation examples."""
        loader = self.tools.eval_loader
        if loader is None or self._loop.evaluated_at == self.global_step:
            return self.last_evaluation
        import torch

        names = loader.source_names
        with self.event("evaluate"), self._loop.totals.untimed():
            self.tools.engine.eval()
            sums = torch.zeros(len(names), 3, dtype=torch.float64, device=self.device)
            with torch.no_grad():
                for window in loader.windows(0):
                    for batch in window.micro_batches:
                        sums += self.evaluation_sums(batch.to(self.device), len(names))
            values = evaluation_metrics(distributed.sum_tensor(sums).tolist(), names)
        self._loop.evaluated_at = self.global_step
        self.last_evaluation = self.tools.state.evaluation = {"step": self.global_step, **values}
        self._record({**self.last_evaluation, "epoch": self._epoch_position()})
        if self.prints_evaluation(self.global_step):
            self.tools.display.evaluation(self.last_evaluation)
        return self.last_evaluation

    def checkpoint(self) -> None:
        """Save with each checkpoint engine whose `do_checkpoint` is true at this step."""
        with self._loop.totals.untimed():
            if self.tools.metrics_file is not None:
                self.tools.metrics_file.sync()
            for engine in self.tools.checkpoints:
                if self.tools.state.stopping or self.training_finished:
                    engine.finish_save()
                if engine.do_checkpoint:
                    self.tools.state.since_last_log = self._loop.totals.state_dict()
                    with self.event("checkpoint", engine=engine), self.event("save", engine=engine):
                        engine.save()

    def _is_spike(self, window_loss: torch.Tensor, units: int) -> bool:
        """Return whether the step's loss is a spike compared to recent ones; the same on every rank. Collective."""
        loss = float(distributed.sum_tensor(window_loss.double().reshape(1))) / units
        recent = self.tools.state.recent_losses
        spike = self._loop.result.spike = describe_spike(loss, recent, self.spike_window_steps, self.spike_sigmas)
        if not spike and math.isfinite(loss):
            recent.append(loss)
            del recent[: -self.spike_window_steps]
        return bool(spike)

    def _agree(self, window: StepBatch) -> dict[str, int]:
        """Sum this step's counts over the ranks, and agree on finished saves and on a stop; one collective."""
        checkpoints, names = self.tools.checkpoints, self.tools.loader.source_names
        supervised, tokens, padding, stop, *more = distributed.sum_over_ranks(
            [
                window.num_supervised,
                sum(batch.num_tokens for batch in window.micro_batches),
                sum(batch.num_padding for batch in window.micro_batches),
                self._asked_to_stop(),
                *(int(engine.save_ready) for engine in checkpoints),
                *(window.supervised_by_source(len(names)) if len(names) > 1 else ()),
            ]
        )
        written, by_source = more[: len(checkpoints)], more[len(checkpoints) :]
        for engine, ranks in zip(checkpoints, written, strict=True):
            if ranks == self.world.size:
                with self._loop.totals.untimed():
                    engine.finish_save()
        if not stop:
            self._loop.totals.by_source.update(dict(zip(names, by_source, strict=False)))
        else:
            self.stop_reason = next(filter(None, distributed.gather_objects(self.tools.stop.reason)))
            if self.world.is_main:
                self.tools.stop.acknowledge()
        return {"supervised": supervised, "tokens": tokens, "padding": padding}

    def _asked_to_stop(self) -> int:
        over = self.max_minutes and time.monotonic() - self._loop.started > 60 * self.max_minutes
        if (
            over and self.global_step > self._loop.first_step
        ):  # at least one step per start, so that every start makes progress
            self.tools.stop.reason = self.tools.stop.reason or f"trainer.max_minutes={self.max_minutes:g} has elapsed"
        return int(self.tools.stop.requested(look_for_file=self.world.is_main))

    def _advance(self, counts: dict[str, int]) -> None:
        """Advance all counters past the completed step, so that a checkpoint saved now describes the state after it."""
        progress, state = self.progress, self.tools.state
        progress.global_step += 1
        progress.epoch_step += 1
        progress.tokens += counts["tokens"]
        progress.padding_tokens += counts["padding"]
        self._loop.totals.steps += 1
        self._loop.totals.tokens += counts["tokens"]
        if self._loop.result.applied:
            progress.supervised_tokens += counts["supervised"]
            progress.consecutive_skipped_steps = 0
        else:
            masked = counts["supervised"] == 0
            progress.skipped_steps += 1
            progress.consecutive_skipped_steps += int(not masked)
            progress.spiked_steps += int(bool(self._loop.result.spike))
            why = self._loop.result.spike or ("no supervised tokens" if masked else "non-finite gradients")
            log.warning("step %d was skipped: %s", progress.global_step, why)
        self._loop.totals.supervised += counts["supervised"]
        state.epoch_finished = progress.epoch_step >= self.tools.loader.steps(progress.epoch)
        if state.epoch_finished:
            progress.epoch, progress.epoch_step = progress.epoch + 1, 0
        state.training_finished = self.training_finished

    def _check_exit(self) -> None:
        if self.progress.consecutive_skipped_steps >= self.max_consecutive_skipped_steps:
            self.tools.state.stopping = True
            self.checkpoint()
            raise ArcticHydraError(
                f"{self.progress.consecutive_skipped_steps} consecutive steps had non-finite gradients or a loss spike (last: "
                f"step {self.global_step}), so the weights did not change; lower optimizer.lr or check the data; a checkpoint was saved"
            )
        if not self.training_finished:
            self.stop_reason = self.stop_reason or self.exit_reason(
                self.global_step, self.global_step - self._loop.first_step
            )

    def _log_if_due(self) -> None:
        interval = self.tools.log_interval or self.training_horizon
        if self.global_step % interval and not self.training_finished:
            return
        import torch

        sums = torch.as_tensor(self._loop.totals.loss_sum, dtype=torch.float64, device=self.device).reshape(1)
        loss_sum = float(distributed.sum_tensor(sums.clone()))
        self.last_metrics = {
            "step": self.global_step,
            "epoch": self._epoch_position(),
            **self._loop.totals.metrics(self.progress, loss_sum, peak_tflops(self.device)),
            "lr": self._loop.result.learning_rate,
            "grad_norm": self._loop.result.grad_norm,
            "memory_gib": memory_gib(self.device),
        }
        if self.spike_sigmas:
            self.last_metrics["spiked_steps"] = self.progress.spiked_steps
        self._loop.totals = LogSums()
        self._record(self.last_metrics)
        self.tools.display.step(self.last_metrics)

    def _record(self, values: dict[str, Any]) -> None:
        """Write one line of metrics; only rank 0 has a metrics file and trackers."""
        if self.tools.metrics_file is not None:
            self.tools.metrics_file.write(values)
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and k != "step"}
        for tracker in self.tools.trackers:
            tracker.log(int(values["step"]), numbers)

    def _epoch_position(self) -> float:
        """Return the number of completed epochs plus the completed fraction of the current one."""
        progress = self.progress
        return round(progress.epoch + progress.epoch_step / max(1, self.tools.loader.steps(progress.epoch)), 4)

    def _finish(self) -> None:
        self.tools.state.training_finished = True
        if self.eval_at_end:
            self.evaluate()
        self.checkpoint()
