"""A trainer knows where it runs before anything is created."""

from __future__ import annotations

import torch

from arctic_hydra.trainer.sft import SFTTrainer
from tests.trainer.loop import tiny_factory


def test_factories_know_where_they_run_before_the_toolbox_exists() -> None:
    trainer, factory = SFTTrainer(), tiny_factory()
    factory.attach(trainer)
    assert factory.trainer is trainer
    assert factory.device == torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    assert (factory.world_size, factory.global_rank, trainer.global_step) == (1, 0, 0)
