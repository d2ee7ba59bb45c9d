"""The settings that every trainer has: how long, in what batches, when to evaluate, what stops it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from arctic_hydra.component import Component
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number


@dataclass(kw_only=True)
class TrainerSlot(Component):
    """Type of the trainer's slot in `Run`; a slot's own type carries no human-friendly numbers (see `component`)."""


@dataclass(kw_only=True)
class TrainerSettings(TrainerSlot):
    """Fields of the base of the trainers; what they mean together is checked here, before anything is loaded."""

    epochs: HumanInt = integer(1, minimum=0)
    """Passes over the data; 0 means as many as `train_iters` needs."""
    train_iters: HumanInt = integer(0, minimum=0)
    """Upper limit of optimizer steps; 0 is none."""
    min_iterations: HumanInt = integer(0, minimum=0)
    """Repeat the data until there are at least so many optimizer steps."""
    exit_iteration: HumanInt = integer(0, minimum=0)
    """Stop after this step with a resumable checkpoint, the schedule unchanged; 0 is off."""
    micro_batch_size: HumanInt = integer(1, minimum=1)
    """Packs (or, unpacked, examples) per forward pass and rank."""
    gradient_accumulation_steps: HumanInt = integer(1, minimum=1)
    """Micro-batches per optimizer step and rank."""
    sequence_parallel_size: HumanInt = integer(1, minimum=1)
    """Ranks that share each sequence (Ulysses): each holds that part of its tokens' activations; divides ranks and heads."""
    activation_checkpoint_cpu_offload: bool = False
    """Keep what recomputed layers start from in the host's memory; worth it from about 64Ki tokens per rank on."""
    tiled_mlp_compute: bool = False
    """Send the tokens of a row through each gated MLP in parts (`converter=[tiled_mlp]` with a setting for how many)."""
    max_minutes: HumanFloat = number(0.0, minimum=0)
    """Stop with a resumable checkpoint once training has taken so long since this start; 0 is off."""
    eval_frequency: HumanInt = integer(0, minimum=0)
    """Optimizer steps between evaluations; 0 is off."""
    eval_interval: HumanInt | None = integer(None, minimum=0)
    """Another name of `eval_frequency`."""
    eval_at_start: bool = True
    """Evaluate before the first step, where there is evaluation data."""
    eval_at_end: bool = True
    """Evaluate after the last step, where there is evaluation data."""
    max_consecutive_skipped_steps: HumanInt = integer(10, minimum=1)
    """Stop, with a checkpoint, after so many steps in a row with non-finite gradients."""
    spike_sigmas: HumanFloat = number(0.0, minimum=0)
    """Skip a step whose loss lies more than so many standard deviations above the mean of the last ones; 0 is off.
    When on, every step waits for its loss before its last backward pass."""
    spike_window_steps: HumanInt = integer(128, minimum=8)
    """Steps that the mean and the deviation are taken over; the guard waits until there are so many."""
    overfit_first_batch: bool = False
    """Train on the first step's batch again and again."""
    kill_switch_path: str | None = None
    """A file whose appearance stops the run with a checkpoint; `STOP` in the run directory when unset."""
    collective_timeout_seconds: HumanInt = integer(1800, minimum=1)
    """How long a rank waits for the others in one collective before it fails."""

    outside_identity: ClassVar[frozenset[str]] = frozenset(
        # Accumulation counts by the global batch, which is in the identity: fewer ranks that accumulate more go on.
        "exit_iteration max_minutes kill_switch_path collective_timeout_seconds eval_interval gradient_accumulation_steps "
        "sequence_parallel_size".split()
    )

    def validate(self) -> None:
        if self.eval_interval is not None:
            if self.eval_frequency not in (0, self.eval_interval):
                raise ValueError(
                    f"eval_interval: got {self.eval_interval}, but eval_frequency={self.eval_frequency}; they are one setting"
                )
            self.eval_frequency = self.eval_interval
        if self.epochs == 0 and self.train_iters == 0:
            raise ValueError("epochs: got 0 while train_iters is 0, so nothing would be trained; set one of them")
