"""The settings that all trainers share: length, batch sizes, evaluation and stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arctic_hydra.component import Component
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number


@dataclass(kw_only=True)
class TrainerSlot(Component):
    """Type of the field `trainer` of `Run`; the types of such fields cannot contain human-friendly numbers."""


@dataclass(kw_only=True)
class TrainerSettings(TrainerSlot):
    """Fields of the base trainer, and the checks among them, which run before anything is loaded."""

    epochs: HumanInt = integer(1, minimum=0, maximum=1_000_000)
    """Passes over the data; 0 repeats the data until `train_iters`."""
    train_iters: HumanInt = integer(0, minimum=0, maximum=10**9)
    """Maximum number of optimizer steps; 0 means no limit."""
    min_iterations: HumanInt = integer(0, minimum=0, maximum=10**9)
    """Repeat the data for at least this many optimizer steps."""
    exit_iteration: HumanInt = integer(0, minimum=0)
    """Stop after this step with a resumable checkpoint, without changing the schedule; 0 disables."""
    exit_iteration_this_run: HumanInt = integer(0, minimum=0)
    """Stop after this many steps of this start with a resumable checkpoint; the same command does as many more. 0 disables."""
    micro_batch_size: HumanInt = integer(1, minimum=1, maximum=1_000_000)
    """Packs (or examples, without packing) per forward pass and rank."""
    gradient_accumulation_steps: HumanInt = integer(1, minimum=1, maximum=1_000_000)
    """Micro-batches per optimizer step and rank."""
    sequence_parallel_size: HumanInt = integer(1, minimum=1, maximum=100_000)
    """Ranks that share each sequence (Ulysses), each with a part of its tokens; must divide the ranks and attention heads."""
    expert_parallel_size: HumanInt = integer(1, minimum=1)
    """Must be 1: the experts of a mixture-of-experts layer are not divided among ranks, except by ZeRO-3."""
    activation_checkpoint_cpu_offload: bool = False
    """Offload checkpointed activations to host memory; worthwhile from about 64Ki tokens per rank."""
    tiled_mlp_compute: bool = False
    """Process the tokens of a row in tiles in each gated MLP (`converter=[tiled_mlp]` has a setting for their number)."""
    max_minutes: HumanFloat = number(0.0, minimum=0)
    """Stop with a resumable checkpoint after training for this many minutes in this process; 0 disables."""
    eval_frequency: HumanInt = integer(0, minimum=0)
    """Optimizer steps between evaluations; 0 disables."""
    eval_interval: HumanInt | None = integer(None, minimum=0)
    """Alias of `eval_frequency`."""
    eval_log_iter_interval: HumanInt = integer(1, minimum=0)
    """Print every n-th of the evaluations that `eval_frequency` sets, 0 none; `metrics.jsonl` and trackers hold all of them."""
    eval_at_start: bool = True
    """Evaluate before the first step, if there is evaluation data."""
    eval_at_end: bool = True
    """Evaluate after the last step, if there is evaluation data."""
    max_consecutive_skipped_steps: HumanInt = integer(10, minimum=1)
    """Stop with a checkpoint after this many consecutive steps with non-finite gradients or loss spikes."""
    spike_sigmas: HumanFloat = number(0.0, minimum=0)
    """Skip steps whose loss is more than this many standard deviations above the mean of recent steps; 0 disables.
    If enabled, every step waits for its loss before its last backward pass. In fp16, DeepSpeed takes a skipped step for an
    overflow, and lowers the scale of the loss."""
    spike_window_steps: HumanInt = integer(128, minimum=8, maximum=1_000_000)
    """Steps over which mean and deviation are computed; no step is skipped before this many."""
    overfit_first_batch: bool = False
    """Train repeatedly on the batch of the first step."""
    kill_switch_path: str | None = None
    """Creating this file stops the run with a checkpoint; `STOP` in the run directory when unset."""
    collective_timeout_seconds: HumanInt = integer(1800, minimum=1, maximum=10**8)
    """Timeout of a collective operation, after which the waiting rank fails."""

    excluded_from_id: ClassVar[frozenset[str]] = frozenset(
        # The identity contains the global batch size instead, so a run can resume on fewer ranks with more accumulation.
        "exit_iteration exit_iteration_this_run max_minutes eval_log_iter_interval expert_parallel_size kill_switch_path "
        "collective_timeout_seconds eval_interval gradient_accumulation_steps sequence_parallel_size".split()
    )

    def validate(self) -> None:
        if self.eval_interval is not None:
            if self.eval_frequency not in (0, self.eval_interval):
                raise ValueError(
                    f"eval_interval: got {self.eval_interval}, but it is an alias of eval_frequency={self.eval_frequency}; pass only one"
                )
            self.eval_frequency = self.eval_interval
        if self.expert_parallel_size != 1:
            raise ValueError(
                f"expert_parallel_size: got {self.expert_parallel_size}, but experts cannot be divided among ranks by expert "
                f"parallelism yet; expected 1; pass deepspeed=zero3, which divides all weights, those of experts too"
            )
        if self.eval_log_iter_interval > 1 and not self.eval_frequency:
            raise ValueError(
                f"eval_log_iter_interval: got {self.eval_log_iter_interval}, which has no effect with eval_frequency=0; set "
                f"eval_frequency, or remove it"
            )
        if self.epochs == 0 and self.train_iters == 0:
            raise ValueError(
                "epochs: got 0, but train_iters is also 0, so the run would have no steps; set one of them"
            )

    def exit_reason(self, step: int, steps_of_this_start: int) -> str:
        """Return why the run is to stop after `step`, the number of steps since this start given; empty to go on."""
        if self.exit_iteration and step >= self.exit_iteration:
            return f"reached trainer.exit_iteration={self.exit_iteration}"
        if self.exit_iteration_this_run and steps_of_this_start >= self.exit_iteration_this_run:
            return f"did trainer.exit_iteration_this_run={self.exit_iteration_this_run} steps"
        return ""

    def prints_evaluation(self, step: int) -> bool:
        """Whether the evaluation at `step` is printed; those at the start and the end, between two intervals, always are."""
        every, between = self.eval_log_iter_interval, self.eval_frequency
        if not every or not between or step % between:
            return bool(every)
        return step // between % every == 0
