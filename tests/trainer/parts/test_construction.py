"""The stages of construction are methods of the trainer that can be overridden one by one."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.optimizer.adamw import AdamWFactory
from arctic_hydra.scheduler.constant import ConstantScheduler
from arctic_hydra.trainer.sft import SFTTrainer
from tests.trainer.loop import tiny_factory


class Halved(SFTTrainer):
    """Halves the weight decay of any optimizer, and doubles the horizon of any schedule."""

    def create_optimizer(self, factory: Any, model: Any) -> Any:
        optimizer = super().create_optimizer(factory, model)
        for group in optimizer.param_groups:
            group["weight_decay"] /= 2
        return optimizer

    def create_scheduler(self, factory: Any, optimizer: Any, horizon: int) -> Any:
        return super().create_scheduler(factory, optimizer, 2 * horizon)


def test_an_override_may_call_the_original() -> None:
    trainer = Halved()
    factory, optimizer = tiny_factory(), AdamWFactory(weight_decay=0.2)
    for part in (factory, optimizer):
        part.attach(trainer)
    model = trainer.create_model(factory, trainer.create_config(factory))
    made = trainer.create_optimizer(optimizer, model)
    assert max(group["weight_decay"] for group in made.param_groups) == 0.1
    assert trainer.create_scheduler(ConstantScheduler(), made, 8).get_last_lr()[0] > 0


def test_a_method_of_transformers_trainer_is_refused_unless_ours_can_call_it() -> None:
    with pytest.raises(
        TypeError, match=r"Theirs.compute_loss is a method .* nothing calls here; define `loss\(self, batch\)`"
    ):
        type("Theirs", (SFTTrainer,), {"compute_loss": lambda self, model, inputs: 0})
    type("Helper", (SFTTrainer,), {"compute_loss": lambda self: 0, "loss": lambda self, batch: self.compute_loss()})
