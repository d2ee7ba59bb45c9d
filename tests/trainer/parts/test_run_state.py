"""A trainer knows where it runs before anything is created."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch

from arctic_hydra import config
from arctic_hydra.cli.composition.compose import with_paths
from arctic_hydra.component import Component
from arctic_hydra.trainer.sft import SFTTrainer
from tests.composing import composed
from tests.trainer.loop import tiny_factory


def test_factories_know_where_they_run_before_the_toolbox_exists() -> None:
    trainer, factory = SFTTrainer(), tiny_factory()
    factory.attach(trainer)
    assert factory.trainer is trainer
    assert factory.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (factory.world_size, factory.global_rank, trainer.global_step) == (1, 0, 0)


def _components(value: Any) -> Iterator[Component]:
    if isinstance(value, Component):
        yield value
        for item in fields(value):
            yield from _components(getattr(value, item.name))
    elif isinstance(value, dict):
        for child in value.values():
            yield from _components(child)


def test_every_component_of_a_composed_run_knows_where_it_runs() -> None:
    more = (
        "trainer.tiled_mlp_compute=true",
        "trainer.activation_checkpoint_cpu_offload=true",
        "peft=lora",
        "model.disable_activation_checkpoint=false",
    )
    run = config.build(with_paths(composed(*more)))
    found = [*_components(run), *run.converters]
    groups = {item.option_group for item in found}
    assert groups >= {
        "model",
        "tokenizer",
        "data",
        "source",
        "optimizer",
        "scheduler",
        "deepspeed",
        "trainer",
        "checkpoint",
    }
    assert groups >= {"converter", "peft", "tracking", "log"}
    for item in found:
        assert (item.trainer, item.world_size, item.global_rank) == (run.trainer, 1, 0), item
        assert isinstance(item.device, torch.device)


def test_what_a_loss_remembers_of_fake_tensors_is_dropped() -> None:
    trainer = SFTTrainer()
    with trainer.with_fake_tensors(torch.nn.Identity()):
        trainer.net = torch.nn.Linear(1, 1)  # as a loss that creates its second model in its first call
    assert not hasattr(trainer, "net") and not hasattr(trainer, "tools")
