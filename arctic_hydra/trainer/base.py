"""Base of the trainers: the training loop.

`Trainer` splits the loop into methods that a subclass can override one by one: `loss` (abstract), `step`, `epoch`, `train`,
`evaluate`, `checkpoint`. A step is a completed optimizer step, counted from 1.

`step` itself consists of `forward_backward`, `optimizer_step` and `finish_step`, from which a subclass composes another
step. Counters, metrics and triggers move in `epoch`, after `step` returns.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra import display, distributed
from arctic_hydra.cross_checks import LIST_SLOTS, SLOTS
from arctic_hydra.data.batch import Batch, StepBatch
from arctic_hydra.engine import optimizer_step
from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.metrics import model_flops
from arctic_hydra.model.names import VARLEN_ATTENTION
from arctic_hydra.trainer.loop_state import LogSums, StepResult
from arctic_hydra.trainer.parts.construction import Construction
from arctic_hydra.trainer.parts.evaluation import Evaluation
from arctic_hydra.trainer.parts.saving import StepStart, resumable_steps, save_after, size_mib
from arctic_hydra.trainer.spikes import describe_spike
from arctic_hydra.trainer.toolbox import Toolbox
from arctic_hydra.trainer.verification.verified_saves import verify_saved

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PROBED_STEPS = (1, 8, 64)
"""Steps of a start after which `Trainer.probe` runs again."""


@dataclass(kw_only=True)
class Trainer(Construction, Evaluation):
    """Base of the trainers; a subclass defines `loss` and declares by type hints which components it supports.

    `loss` is enough: its docstring states what it returns.
    """

    looks_ahead: ClassVar[str] = ""
    """Why the loss of a position may depend on tokens after the one that it predicts; if empty, `probe` refuses that."""
    mixes_documents: ClassVar[str] = ""
    """Why the loss of a document may depend on the other documents of its row; if empty, `probe` refuses that."""
    can_store_scores: ClassVar[bool] = False
    """Whether the trainer has a frozen model whose scores `task=score` can store; `store_scores` then makes `prepare` do that."""
    frozen_setting: ClassVar[str] = "reference"
    """The setting that names this model, for errors."""
    score_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that only scores read."""
    not_additive: ClassVar[str] = ""
    """Why the loss of several documents may be other than the sum of their losses; if empty, `probe` refuses that."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, hint in vars(cls).get("__annotations__", {}).items():
            if name in (*SLOTS, *LIST_SLOTS) and "ClassVar" not in str(hint):
                text = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
                raise TypeError(
                    f"{cls.__name__}.{name}: objects that the runner passes are not settings; declare `{name}: ClassVar[{text}]`"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the additional state of a subclass, such as a second model: tensors, numbers, texts, lists and dictionaries.

        It is saved per rank; a run that resumes on another number of ranks gets that of rank 0. Empty by default. Called in each step,
        so that an error in a step can save the last one, unless the step has changed one of these tensors in place.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; called after `setup`, in runs that resume from or evaluate a checkpoint with one."""

    @property
    def stores_scores(self) -> bool:
        """Whether `prepare` stores scores of a frozen model, and the run reads them."""
        return False

    def store_scores(self) -> None:
        """Force `prepare` to store the scores of the frozen model, regardless of the settings; for `task=score`."""

    def setup(self, tools: Toolbox) -> None:
        """Set the objects that the runner built; called once, before `probe` and `train`. Collective.

        Raises ConfigError for a model that ignores the chosen attention.
        """
        super().setup(tools)
        if tools.model_factory.attn_implementation == VARLEN_ATTENTION:
            from arctic_hydra.trainer.isolation import check_attention

            with self.trial():
                check_attention(tools.engine, self.device)

    @contextmanager
    def trial(self, *copies: torch.nn.Module) -> Iterator[None]:
        """Within this context, run the engine, and copies of its model, on a few trial tokens.

        They are not part of a shared sequence, and nothing is rounded.
        """
        with distributed.without_sequence_group(), ExitStack() as exact:
            for converter in self.tools.converters:
                for model in (self.tools.engine.module, *copies):
                    exact.enter_context(converter.without_rounding(model))
            yield

    def probed_loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss that `probe` looks at: `loss`, without terms over tokens that are not supervised, if it has any."""
        return self.loss(batch)

    def probe(self) -> None:
        """Check that the loss is finite, depends neither on later tokens nor on other documents of its batch, and is a sum.

        Called after `setup`, and again after the steps of this start that `PROBED_STEPS` names, for layers that begin at zero.
        Raises ConfigError. It calls `probed_loss` on a few short batches without gradients, and changes no random state.
        Collective.
        """
        from arctic_hydra.trainer.isolation import (
            Subject,
            check_causality,
            check_empty,
            check_finite,
            check_isolation,
            check_sum,
        )

        tools, is_first = self.tools, self.global_step == self._loop.first_step
        attention = tools.model_factory.attn_implementation
        name = vars(type(self)).get("option_name") or type(self).__name__
        subject = Subject(self.probed_loss, tools.engine, self.device, attention, f"trainer={name}", self.units)
        with self.trial():
            if self.global_step == 0:
                check_finite(subject)
            if not self.looks_ahead:
                check_causality(subject)
            shares = self.sequence_parallel_size > 1
            if shares or ((tools.packed or self.micro_batch_size > 1) and not self.mixes_documents):
                check_isolation(subject, self.sequence_parallel_size, packed=tools.packed or shares)
            if is_first and not self.not_additive:
                check_sum(subject, tools.packed, coarse=bool(self.mixes_documents or self.looks_ahead))
            if is_first and self.world.size > 1:
                check_empty(subject, tools.packed)
        declared = {
            "depends on later tokens": self.looks_ahead,
            "depends on other documents": self.mixes_documents,
            "is a sum": self.not_additive,
        }
        for what, why in declared.items():
            if why and self.world.is_main and is_first:
                log.info("not checked whether the loss %s: %s", what, why)

    def prepare(self) -> None:
        """Compute what has to exist before the first batch, such as stored scores; called once, after `setup` and `probe`.

        Does nothing by default. Collective.
        """

    def train(self) -> None:
        """Train until the horizon, or until all ranks agree to stop."""
        tools = self.tools
        if self.progress.consecutive_skipped_steps >= self.max_consecutive_skipped_steps:
            self.progress.consecutive_skipped_steps = 0  # it ended the last start; the cause may have been mended since
        holder = "GPU" if self.device.type == "cuda" else "process"
        shown = tools.display.training(self.training_horizon, self.global_step, holder)
        with shown, self.event("train", engine=tools.engine, loader=tools.loader, eval_loader=tools.eval_loader):
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
        for window in resumable_steps(self):
            counts = self._agree(window)
            if self.stop_reason:
                break
            self._loop.result = StepResult(learning_rate=float(self.tools.scheduler.get_last_lr()[0]))
            scheduled = self.tools.scheduler.last_epoch
            with self.event("step", window=window, counts=counts) as facts:
                self.prepare_step(window, counts)
                self.step(window, counts)
                result = self.step_result
                facts |= {"loss_sum": result.loss_sum, "grad_norm": result.grad_norm, "applied": result.applied}
                facts["learning_rate"] = result.learning_rate
            if (calls := self.tools.scheduler.last_epoch - scheduled) != 1:
                raise ConfigError(
                    f"trainer: `step` of {type(self).__name__} advanced the learning-rate schedule {calls} times, expected once; call "
                    "`self.finish_step(window)` at its end, and once only"
                )
            self._loop.step_start = None
            self._advance(counts)
            if self.global_step - self._loop.first_step in PROBED_STEPS:
                with self._loop.totals.untimed():
                    self.probe()
            self._log_if_due()
            if self.eval_frequency and self.global_step % self.eval_frequency == 0:
                self.evaluate()
            self._check_exit()
            if not self.training_finished:  # `_finish` saves after the last evaluation
                self.checkpoint()
            if self.stop_reason or self.training_finished:
                break
        self._loop.step_start = None
        if self.stop_reason and not self.training_finished:
            # A request to finish that nobody has agreed on yet holds for the next start.
            asked = distributed.gather_objects(self._loop.asked)
            self.tools.state.ended = next((reason for reason, finished in asked if finished), "")
            self.tools.state.stopping = True
            self.checkpoint()

    def step(self, window: StepBatch, counts: dict[str, int]) -> None:
        """Perform one optimizer step over the window's micro-batches; the loss is the mean over the units of all ranks.

        `counts` holds the step's `units` (see there), `supervised`, `tokens` and `padding` tokens, summed over all ranks. A
        step without units changes no weights.
        """
        if units := counts["units"]:
            self.forward_backward(window, units)
            self.optimizer_step()
        self.finish_step(window)

    def forward_backward(
        self,
        window: StepBatch,
        units: int,
        loss: Callable[[Batch], torch.Tensor] | None = None,
        *,
        logged: bool = True,
    ) -> torch.Tensor:
        """Accumulate the gradients of the mean loss in the engine; return the sum of this rank's losses, without a graph.

        `loss` (`self.loss` by default) returns a sum over units for each micro-batch; `units` is their number over all
        micro-batches and ranks. The gradients are complete afterwards: call `optimizer_step` before another pass. The loss
        of the log line is that of the step's last pass with `logged`. Collective.
        """
        if self.step_result.pending:
            raise ConfigError(
                f"trainer: `step` of {type(self).__name__} called `forward_backward` twice without `optimizer_step`, which would add "
                "up the gradients of both; call `optimizer_step` after each pass, or pass the sum of both losses"
            )
        engine, batches = self.tools.engine, window.micro_batches
        if self.spike_sigmas and self.sequence_parallel_size == 1 and not self.units(batches[-1]):
            # The gradient of the last micro-batch makes the step be skipped, so it must have units if any has.
            batches = sorted(batches, key=lambda batch: self.units(batch) > 0)
        engine.train()
        last = len(batches) - 1
        total: torch.Tensor | float = 0.0
        for index, batch in enumerate(batches):
            with self.event("loss", batch=batch) as facts:
                if (given := self.units(facts["batch"])) != (expected := self.units(batch)):
                    raise ValueError(
                        f"on_loss_start returned a batch with {given} units, expected {expected} as in the batch that it "
                        "replaces, because the step divides by them; mask in the data"
                    )
                facts["batch"] = facts["batch"].to(self.device)
                facts["loss"] = (loss or self.loss)(facts["batch"])
            loss_sum = facts["loss"]
            _check_loss(loss_sum, facts["batch"])
            total = total + loss_sum.detach()
            scale = self.world.size / units
            if index == last and logged and self.spike_sigmas and self._is_spike(total, units):
                scale = math.nan  # non-finite gradients make every ZeRO stage skip the step
            with self.event("backward", batch=facts["batch"], loss=loss_sum) as facts:
                engine.set_gradient_accumulation_boundary(index == last)
                # DeepSpeed averages gradients over ranks; `scale` contains the number of ranks to get their sum.
                engine.backward(facts["loss"] * scale, scale_wrt_gas=False)
        self.step_result.pending = True
        if logged:
            self.step_result.loss_sum = total
        return total  # type: ignore[return-value]  # a window has at least one micro-batch

    def optimizer_step(self) -> bool:
        """Apply the accumulated gradients, then the converters' hooks; return whether the weights changed. Collective.

        Non-finite gradients change nothing. Sets `step_result.grad_norm`, `applied` and `learning_rate`: that of the
        schedule, which `finish_step` advances, unless a callback has set another in the optimizer.
        """
        self._loop.step_start, result = None, self.step_result
        result.stepped, result.pending = True, False
        result.learning_rate = float(self.tools.engine.get_lr()[0])  # a callback may have set another than the schedule
        result.grad_norm, result.applied = optimizer_step(self.tools.engine, self.tools.engine_config)
        if result.applied:
            for converter in self.tools.converters:
                converter.post_optimizer_hook(self.tools.engine.module)
        return result.applied

    def finish_step(self, window: StepBatch) -> None:
        """Advance the learning-rate schedule and count the FLOPs of the window; call it once per step, at its end."""
        self.tools.scheduler.step()
        for batch in window.micro_batches:  # the ranks of a sequence group divide the body's FLOPs
            body = model_flops(*self.tools.flops_shape, batch.document_lengths, 0)
            head = model_flops(*self.tools.flops_shape, [], batch.num_supervised)
            self._loop.totals.flops += body / self.sequence_parallel_size + head

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
                    about = {"engine": engine, "path": engine.checkpoint_dir}
                    name = engine.checkpoint_dir.name
                    what = ("save", name) if engine.can_resume else ("export", f"to {name}/")
                    with (
                        display.phase(*what, unit="MiB") as saving,
                        self.event("checkpoint", **about) as outer,
                        self.event("save", **about) as inner,
                    ):
                        outer["path"] = inner["path"] = path = engine.save()
                        saving.advance(size_mib(path) if self.world.is_main else 0)
                        saving.about += "" if path else " failed"
                        verify_saved(
                            self, engine, path
                        )  # before a callback such as `ema` puts the trained weights back

    def save_after(self, error: Exception) -> None:
        """Save the last whole step, marked, if all ranks can after an error that ends the run; called by the runner.

        They can on a single rank, and if all fail in the same step, before its optimizer step. Adds a note to the error that
        says what the same command resumes from. Never raises.
        """
        save_after(error, self)

    def _is_spike(self, window_loss: torch.Tensor, units: int) -> bool:
        """Return whether the step's loss is a spike compared to recent ones; the same on every rank. Collective."""
        loss = float(distributed.sum_tensor(window_loss.double().reshape(1))) / units
        recent = self.tools.state.recent_losses
        spike = self._loop.result.spike = describe_spike(loss, recent, self.spike_window_steps, self.spike_sigmas)
        if not spike and math.isfinite(loss):
            recent.append(loss)
            del recent[: -self.spike_window_steps]
        return bool(spike)

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

    def _finish(self) -> None:
        self.tools.state.training_finished = True
        if self._loop.totals.steps:  # the run ends before its horizon
            self._log()
        if self.eval_at_end:
            if all(
                callback.only_observes for callback in self.listeners("evaluate_start")
            ):  # `ema` exchanges the weights
                self._loop.step_start = StepStart.of(self)
            self.evaluate()
            self._loop.step_start = None
        self.checkpoint()


def _check_loss(loss: Any, batch: Batch) -> None:
    """Raise ConfigError for a loss of a micro-batch from which no gradient follows."""
    import torch

    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
        raise ConfigError(f"trainer: the loss of a step is {got}, expected a scalar tensor: the sum over its units")
    if loss.requires_grad:
        return
    if not batch.num_supervised:
        raise ConfigError(
            "trainer: the loss of a batch without supervised positions has no graph; expected 0 with one, as a sum over no positions is: "
            "run `self.tools.engine` in any case, because other ranks wait for it"
        )
    raise ConfigError(
        "trainer: the loss of a step has no graph, so no weight gets a gradient from it; expected one that depends on the output of "
        "`self.tools.engine`, without `.detach()`, `.item()` or `torch.no_grad()`"
    )
