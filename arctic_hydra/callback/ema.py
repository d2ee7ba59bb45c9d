"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import HumanFloat, number

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.base import Trainer


@component(group="callback", name="ema")
class ExponentialMovingAverage(Callback):
    """Averages the trained weights over the steps (Polyak and Juditsky 1992), which evaluation and exports then use.

    The average is partitioned like the optimizer's fp32 weights: each rank averages its own part at ZeRO-1 to 3, without communication,
    which takes 4 bytes per trained parameter, divided by the ranks. Frozen weights are not averaged. Training itself is not
    affected. Checkpoints contain the average, and a resumed run continues it bit for bit.
    """

    decay: HumanFloat = number(0.999, minimum=0, maximum=1)
    """Weight of the previous average in each step; 0.999 averages over about the last 1,000 steps."""
    evaluate: bool = True
    """Evaluate the averaged weights; otherwise those of training."""
    export: bool = True
    """Export the averaged weights with `checkpoint=[hf]`; otherwise those of training."""

    only_observes: ClassVar[bool] = False
    bytes_per_parameter: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._average: list[torch.Tensor] | None = None
        self._saved: dict[str, Any] = {}

    def validate(self) -> None:
        if self.decay >= 1:
            raise ValueError(
                f"decay: got {self.decay:g}, expected less than 1, such as 0.999; with 1 the average would never change"
            )

    def on_train_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Begin with the current weights, or continue from the checkpoint."""
        import torch

        weights, self._engine = self._weights(trainer), trainer.tools.engine
        if any(not value.numel() for value in weights):
            raise ConfigError(
                "callback.ema: the optimizer's weights are offloaded to NVMe, but the average needs them after each step; "
                "offload to the CPU instead, or leave ema out"
            )
        self._average = [value.clone() for value in weights]
        for average, saved in zip(self._average, self._saved.pop("partitioned", []), strict=False):
            average.copy_(saved)
        if trainer.zero_stage == 0 and trainer.world.size > 1:  # only rank 0 has saved it
            for average in self._average:
                torch.distributed.broadcast(average, src=0)

    def on_step_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Move the average towards the weights; skipped steps do not count."""
        import torch

        if facts["applied"]:
            torch._foreach_lerp_(self._average, self._weights(trainer), 1 - self.decay)

    def on_evaluate_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Exchange weights and average."""
        self._exchange(trainer, self.evaluate)

    def on_evaluate_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Exchange them back."""
        self._exchange(trainer, self.evaluate)

    def on_save_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Exchange weights and average for an export."""
        self._exchange(trainer, self.export and not facts["engine"].can_resume)

    def on_save_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Exchange them back after an export."""
        self._exchange(trainer, self.export and not facts["engine"].can_resume)

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of the average; at ZeRO-0, where all ranks hold the same, only rank 0 returns it."""
        if self._average is None or (self.trainer.zero_stage == 0 and self.global_rank):
            return {}
        from arctic_hydra.callback.master_weights import names

        named = {} if self.trainer.zero_stage else {"names": names(self._engine)}
        return {"partitioned": self._average, **named}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the saved average until training starts."""
        self._saved = dict(state)

    def _exchange(self, trainer: Trainer, wanted: bool) -> None:
        """Exchange the optimizer's weights with the average in place, and copy them into the model; collective.

        Doing so twice restores both bit for bit: the model's weights are the rounded weights of the optimizer.
        """
        from arctic_hydra.callback.master_weights import publish

        if self._average is None or not wanted:
            return
        for weight, average in zip(self._weights(trainer), self._average, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        publish(trainer.tools.engine)

    def _weights(self, trainer: Trainer) -> list[torch.Tensor]:
        from arctic_hydra.callback.master_weights import parts

        return parts(trainer.tools.engine)
