"""Full weights of a model on rank 0's CPU, whatever ZeRO stage holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from arctic_hydra.distributed import gathered


def gather_weights(model: torch.nn.Module, *, keep: bool, beside: Path, whole: bool = False) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name, on the CPU, in the model's dtypes; collective.

    Of a PEFT model only what its export can ask for, unless it is to be `whole`.

    Ranks with `keep` false take part and return {}. Partitioned parameters (ZeRO-3) are gathered one at a time and kept in
    files in the directory `beside`, mapped into memory: the device and the host hold one full parameter at most, and
    what page cache the rest takes the system can have back. The caller removes the files. Tied parameters are one tensor
    under each of their names, which is how save_pretrained knows them.

    Raises OSError where a file cannot be written, on that rank and once all ranks are through.
    """
    wanted = None if whole else _adapter_parameters(model)
    weights: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}
    problem: OSError | None = None
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor) or (wanted is not None and id(value) not in wanted):
            continue
        if id(value) not in copies:
            copies[id(value)] = torch.empty(0)
            with gathered(value):
                # Read inside: leaving the block gives the full parameter's memory back.
                if keep and problem is None:
                    try:
                        copies[id(value)] = _host_copy(value, beside / f"{len(copies)}")
                    except OSError as error:
                        problem = error
        weights[name] = copies[id(value)]
    if problem is not None:
        raise problem
    return weights if keep else {}


def _host_copy(value: torch.Tensor, file: Path) -> torch.Tensor:
    whole = value.detach()
    if not hasattr(value, "ds_id") or not whole.numel():
        return whole.to("cpu", copy=True).contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as raw:  # written, not mapped and filled: a full disk is then an error, not a SIGBUS
        raw.write(memoryview(whole.cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    mapped = torch.from_file(str(file), shared=False, size=whole.numel(), dtype=whole.dtype)
    return mapped.view(whole.shape)


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
