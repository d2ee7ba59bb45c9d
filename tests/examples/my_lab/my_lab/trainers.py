"""Trainers that extend those of arctic_hydra: a loss alone, a nested config, and a step with a second model."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import component
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.scheduler.cosine import CosineScheduler
from arctic_hydra.scheduler.linear import LinearScheduler
from arctic_hydra.trainer.base import Trainer
from arctic_hydra.trainer.sft import SFTTrainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.data.batch import Batch, StepBatch
    from arctic_hydra.trainer.toolbox import Toolbox


@component(group="trainer", name="plain")
class PlainTrainer(Trainer):
    """Defines the loss and nothing else."""

    model: ClassVar[TinyModelFactory | RandomModelFactory]

    def loss(self, batch: Batch) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        from arctic_hydra.trainer.head import model_inputs

        logits_KV = self.tools.engine(**model_inputs(batch)).logits.flatten(0, 1)[batch.rows_K]
        return cross_entropy(logits_KV.float(), batch.targets_K, reduction="sum")


class Mood(Enum):
    """How a day is."""

    good = "good"
    great = "great"


@dataclass
class CustomConfig:
    """A group of fields, as in torchtitan's example of an extended config."""

    how_is_your_day: Mood = Mood.good
    """How it is."""
    my_mini_steps: HumanInt = integer(10_000, minimum=1)
    """Small steps."""

    def __post_init__(self) -> None:
        if self.my_mini_steps == 13:
            raise ValueError("my_mini_steps: got 13, expected luck")


@component(group="trainer", name="custom")
class CustomTrainer(SFTTrainer):
    """Has fields in a group of their own."""

    custom_config: CustomConfig = field(default_factory=CustomConfig)
    """The group."""

    def setup(self, tools: Toolbox) -> None:
        super().setup(tools)
        days = f"{self.custom_config.how_is_your_day.name} {self.custom_config.my_mini_steps + 1}"
        (tools.run_dir / "day.txt").write_text(days)


@component(group="trainer", name="adversarial")
class AdversarialTrainer(SFTTrainer):
    """Trains a critic of the hidden states with an optimizer of its own, and the model against it."""

    critic_lr: HumanFloat = number(1e-3, minimum=0)
    """Learning rate of the critic."""

    def setup(self, tools: Toolbox) -> None:
        import torch

        super().setup(tools)
        self.critic = torch.nn.Linear(tools.engine.module.config.vocab_size, 1).to(self.device)
        self.critic_optimizer = torch.optim.SGD(self.critic.parameters(), lr=self.critic_lr)

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])

    def scores(self, batch: Batch) -> torch.Tensor:
        """Return the critic's score of each supervised position, [K, 1]."""
        from arctic_hydra.trainer.loss import supervised_logits

        return self.critic(supervised_logits(self.tools.engine, batch)[0].float())

    def step(self, window: StepBatch, counts: dict[str, int]) -> None:
        if units := counts["supervised"]:
            self.forward_backward(window, units, lambda batch: self.loss(batch) - self.scores(batch).tanh().sum())
            self.optimizer_step()
            self.critic.zero_grad()
            for batch in window.micro_batches:
                score = self.scores(batch.to(self.device)).tanh().sum() / units
                score.backward(inputs=list(self.critic.parameters()))
            self.critic_optimizer.step()
            self.step_result.metrics["score"] = score.detach()
        self.finish_step(window)


@component(group="trainer", name="choosy")
class ChoosyTrainer(SFTTrainer):
    """Names other defaults than the config."""

    model: ClassVar[HFModelFactory | TinyModelFactory]
    scheduler: ClassVar[LinearScheduler | CosineScheduler]
