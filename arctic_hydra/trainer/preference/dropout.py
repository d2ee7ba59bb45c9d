"""Turns dropout off for losses that compare a model with a frozen one, which would otherwise differ at random."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import nn

from arctic_hydra import distributed
from arctic_hydra.errors import ConfigError
from arctic_hydra.trainer.head import probe_batch

if TYPE_CHECKING:
    from arctic_hydra.trainer.base import Trainer

log = logging.getLogger("arctic_hydra.trainer")


def turn_dropout_off(trainer: Trainer) -> None:
    """Turn dropout off in the trainer's model; the trainer can compute its `probed_loss`. Collective.

    Raises ConfigError if two forward passes in training mode still differ.
    """
    engine = trainer.tools.engine
    if found := disable_dropout(engine.module):
        log.info("dropout is off, because it would change the predictions that are compared: %s", ", ".join(found[:3]))
    batch, was_training = probe_batch(engine.module, trainer.device), engine.module.training
    engine.train()
    with trainer.trial(), torch.no_grad():
        first, second = (float(trainer.probed_loss(batch)) for _ in range(2))
    engine.train(was_training)
    if distributed.sum_over_ranks([int(abs(first - second) > 1e-4 * abs(first))])[0]:
        raise ConfigError(
            f"model: {type(engine.module).__name__} draws random numbers in its forward pass besides dropout (losses {first:.6g} and "
            f"{second:.6g} of the same tokens), so what it predicts cannot be compared; turn that off in "
            "model.hf_config_kwargs"
        )


def disable_dropout(model: nn.Module) -> list[str]:
    """Set every dropout rate of the model's modules to 0; return the names of those that were not.

    Rates are the `p` of torch's dropout layers, and attributes with `dropout` in their name, with which attention layers
    call functions.
    """
    found = []
    for path, module in model.named_modules():
        rates = {"p"} if isinstance(module, nn.modules.dropout._DropoutNd) else set[str]()
        rates |= {name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)}
        for name in sorted(rates):
            if getattr(module, name) > 0:
                setattr(module, name, 0.0)
                found.append(f"{path}.{name}" if path else name)
    return found
