"""Full weights of a model on rank 0's CPU, whatever ZeRO stage holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from arctic_hydra.distributed import gathered


def gather_weights(model: torch.nn.Module, *, keep: bool, whole: bool = False) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name, on the CPU, in the model's dtypes; collective.

    Of a PEFT model only what its export can ask for, unless it is to be `whole`.
    Ranks with `keep` false take part and return {}. Partitioned parameters (ZeRO-3) are gathered one at a time, so a
    device holds one full parameter at most. Tied parameters are one tensor under each of their names, which is how
    save_pretrained knows them.
    """
    wanted = None if whole else _adapter_parameters(model)
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


def _adapter_parameters(model: torch.nn.Module) -> set[int] | None:
    """Return which tensors a PEFT wrapper can ask for (the base stays where it is), or None: all of them."""
    if not hasattr(model, "peft_config"):
        return None
    wrapper: Any = model
    embeddings = [wrapper.get_input_embeddings(), wrapper.get_output_embeddings()]
    kept: list[Iterable[torch.Tensor]] = [module.parameters() for module in embeddings if module is not None]
    kept.append(parameter for parameter in model.parameters() if parameter.requires_grad)
    return {id(parameter) for group in kept for parameter in group}


def checksum(model: torch.nn.Module, names: Iterable[str]) -> str:
    """Return a short hash over parameters by name, the same at every ZeRO stage and number of ranks; collective.

    One pass on the device that holds them. It tells another base model from this one; it is no proof against malice.
    """
    parameters = dict(model.named_parameters())
    digest = hashlib.sha256()
    for name in sorted(names):
        with gathered(parameters[name]):
            bits = torch.hash_tensor(parameters[name].detach()) if parameters[name].numel() else torch.zeros(1)
            digest.update(f"{name} {int(bits.item())}\n".encode())
    return digest.hexdigest()[:16]
