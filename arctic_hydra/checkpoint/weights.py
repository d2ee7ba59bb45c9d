"""Full weights of a model on rank 0's CPU, whatever ZeRO stage holds them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def gather_weights(model: torch.nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name, on the CPU, in the model's dtypes; collective.

    Ranks with `keep` false take part and return {}. Partitioned parameters (ZeRO-3) are gathered one at a time, so a
    device holds one full parameter at most. Tied parameters are one tensor under each of their names, which is how
    save_pretrained knows them.
    """
    wanted = _adapter_parameters(model)
    weights: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor) or (wanted is not None and id(value) not in wanted):
            continue
        if id(value) not in copies:
            with gathered(value):
                # The copy is made inside: leaving the block gives the full parameter's memory back.
                copies[id(value)] = value.detach().to("cpu", copy=True).contiguous() if keep else torch.empty(0)
        weights[name] = copies[id(value)]
    return weights if keep else {}


def gathered(value: torch.Tensor, *, writes: bool = False) -> AbstractContextManager[Any]:
    """Return a context in which a partitioned parameter is whole; with `writes`, rank 0's changes reach all ranks."""
    if not hasattr(value, "ds_id"):
        return nullcontext()
    # Only the engine module may import DeepSpeed; a partitioned parameter exists only once it has been loaded.
    zero = sys.modules["deepspeed"].zero
    context: AbstractContextManager[Any] = zero.GatheredParameters([value], modifier_rank=0 if writes else None)
    return context


def _adapter_parameters(model: torch.nn.Module) -> set[int] | None:
    """Return which tensors a PEFT wrapper can ask for (the base stays where it is), or None: all of them."""
    if not hasattr(model, "peft_config"):
        return None
    wrapper: Any = model
    embeddings = [wrapper.get_input_embeddings(), wrapper.get_output_embeddings()]
    kept: list[Iterable[torch.Tensor]] = [module.parameters() for module in embeddings if module is not None]
    kept.append(parameter for parameter in model.parameters() if parameter.requires_grad)
    return {id(parameter) for group in kept for parameter in group}
