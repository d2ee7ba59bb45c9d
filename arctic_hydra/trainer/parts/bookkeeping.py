"""What happens between two steps: counters, log lines, and whether to stop."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from arctic_hydra import distributed
from arctic_hydra.data.batch import Batch, StepBatch
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import shorten
from arctic_hydra.metrics import memory_gib, peak_tflops
from arctic_hydra.tracking.base import call_each
from arctic_hydra.trainer.loop_state import LogSums
from arctic_hydra.trainer.parts.run_state import TrainerState

log = logging.getLogger("arctic_hydra.trainer")


@dataclass(kw_only=True)
class Bookkeeping(TrainerState):
    """Counts steps, logs them, and agrees with the other ranks on a stop."""

    def units(self, batch: Batch) -> int:
        """Return the number of units of a micro-batch, over which `loss` is a sum: its supervised tokens by default.

        It is known on the host: `step` adds it up over all micro-batches and ranks before the first `loss`.
        """
        return batch.num_supervised

    def prepare_step(self, window: StepBatch, counts: dict[str, int]) -> None:
        """Compute what the losses of a step need from all of its micro-batches and ranks; called before each `step`. Collective."""

    def _agree(self, window: StepBatch) -> dict[str, int]:
        """Sum this step's counts over the ranks, and agree on finished saves and on a stop; one collective."""
        checkpoints, names = self.tools.checkpoints, self.tools.loader.source_names
        supervised, units, tokens, padding, stop, *more = distributed.sum_over_ranks(
            [
                window.num_supervised,
                sum(self.units(batch) for batch in window.micro_batches),
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
            mine = (self.tools.stop.reason, False) if self.tools.stop.reason else self._loop.asked
            self.stop_reason, finished = next(asked for asked in distributed.gather_objects(mine) if asked[0])
            if finished:
                self._loop.ended = self.tools.state.ended = self.stop_reason
            if self.world.is_main:
                self.tools.stop.acknowledge()
        return {"supervised": supervised, "units": units, "tokens": tokens, "padding": padding}

    def _asked_to_stop(self) -> int:
        over = self.max_minutes and time.monotonic() - self._loop.started > 60 * self.max_minutes
        if (
            over and self.global_step > self._loop.first_step
        ):  # at least one step per start, so that every start makes progress
            self.tools.stop.reason = self.tools.stop.reason or f"trainer.max_minutes={self.max_minutes:g} has elapsed"
        return int(self.tools.stop.requested(look_for_file=self.world.is_main) or bool(self._loop.asked[0]))

    def _advance(self, counts: dict[str, int]) -> None:
        """Advance all counters past the completed step, so that a checkpoint saved now describes the state after it."""
        progress, state, result = self.progress, self.tools.state, self.step_result
        progress.global_step += 1
        progress.epoch_step += 1
        progress.tokens += counts["tokens"]
        progress.padding_tokens += counts["padding"]
        if result.loss_sum is not None:
            self._loop.totals.add_loss(result.loss_sum)
        self._loop.totals.steps += 1
        self._loop.totals.tokens += counts["tokens"]
        if result.applied:
            progress.supervised_tokens += counts["supervised"]
            progress.consecutive_skipped_steps = 0
            if result.grad_norm == 0 and progress.global_step == self._loop.first_step + 1:
                log.warning(
                    "step %d: every gradient is 0, so the weights learnt nothing in it; a loss has to depend on the output of "
                    "`self.tools.engine`",
                    progress.global_step,
                )
        else:
            masked = counts["units"] == 0
            progress.skipped_steps += 1
            progress.consecutive_skipped_steps += int(not masked)
            progress.spiked_steps += int(bool(result.spike))
            why = result.spike or ("no supervised tokens" if masked else "non-finite gradients")
            if not masked and not result.stepped:
                why = "its `step` neither called `optimizer_step` nor set `step_result.applied`"
            log.warning("step %d was skipped: %s", progress.global_step, why)
        self._loop.totals.supervised += counts["supervised"]
        self._loop.totals.units += counts["units"]
        state.epoch_finished = progress.epoch_step >= self.tools.loader.steps(progress.epoch)
        if state.epoch_finished:
            progress.epoch, progress.epoch_step = progress.epoch + 1, 0
        state.training_finished = self.training_finished

    def _log_if_due(self) -> None:
        interval = self.tools.log_interval or self.training_horizon
        if self.global_step % interval == 0 or self.training_finished:
            self._log()

    def _log(self) -> None:
        """Write the log line of the steps since the last one."""
        import torch

        totals = self._loop.totals
        figures = {"loss": totals.loss_sum, **totals.figures}
        mine = [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in figures.values()]
        sums = dict(zip(figures, distributed.sum_tensor(torch.stack(mine)).tolist(), strict=True))
        loss_sum = sums.pop("loss")
        self.last_metrics = {
            "step": self.global_step,
            "epoch": self._epoch_position(),
            **totals.metrics(self.progress, loss_sum, peak_tflops(self.device)),
            "lr": self.step_result.learning_rate,
            "grad_norm": self.step_result.grad_norm,
            "memory_gib": memory_gib(self.device),
        }
        if self.spike_sigmas:
            self.last_metrics["spiked_steps"] = self.progress.spiked_steps
        self.last_metrics |= self.logged_figures(sums, totals.units)
        if totals.minima or totals.maxima:
            self.last_metrics |= self._extremes()
        self.last_metrics |= _numbers(self.step_result.metrics)
        self._loop.totals = LogSums()
        self.last_metrics = self._offered(self.last_metrics)
        self._record(self.last_metrics)
        self.tools.display.step(self.last_metrics)

    def logged_figures(self, sums: dict[str, float], units: int) -> dict[str, float]:
        """Return the figures of a log line from their sums over `units` units: their means by default."""
        return {name: value / units for name, value in sums.items()}

    def _extremes(self) -> dict[str, float]:
        """Return the minima and maxima since the last log line over all ranks. Collective."""
        import torch

        minima, maxima = self._loop.totals.minima, self._loop.totals.maxima
        signed = [*(-value for value in minima.values()), *maxima.values()]
        mine = [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in signed]
        found = distributed.max_tensor(torch.stack(mine)).tolist()
        return {
            name: -value if name in minima else value for name, value in zip([*minima, *maxima], found, strict=True)
        }

    def _offered(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return a line of metrics as the callbacks leave it."""
        facts = {"metrics": values}
        self.notify("log", self, facts)
        return facts["metrics"]

    def _record(self, values: dict[str, Any]) -> None:
        """Write one line of metrics; only rank 0 has a metrics file and trackers."""
        if self.tools.metrics_file is not None:
            self.tools.metrics_file.write(values)
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and k != "step"}
        self.tools.trackers = call_each(self.tools.trackers, "log", int(values["step"]), numbers)

    def _epoch_position(self) -> float:
        """Return the number of completed epochs plus the completed fraction of the current one."""
        progress = self.progress
        return round(progress.epoch + progress.epoch_step / max(1, self.tools.loader.steps(progress.epoch)), 4)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the figures that a step adds to its log line as numbers; raises ConfigError for one that is none."""
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"trainer: `step_result.metrics[{name!r}]` holds {shorten(value)}, expected a number or a scalar tensor"
            ) from error
    return numbers
