"""Whole weights on the CPU, whatever ZeRO stage holds them: gathered from the ranks, or read from a checkpoint's files.

Below ZeRO-3 one file of a checkpoint holds the whole model. At ZeRO-3 each parameter is cut evenly over the ranks (its last
part padded), and a rank's parts follow each other in one flat fp32 vector per parameter group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from arctic_hydra.checkpoint.writer import load_tensors
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
    wanted = None if whole else _exported_parameters(model)
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


def _exported_parameters(model: torch.nn.Module) -> set[int] | None:
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


def read_checkpoint_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name; tied ones once, under the name that the model lists first.

    Tensors are mapped from the files where these hold them whole, so they take memory only as they are read.
    """
    [*shards] = sorted(path.glob("zero_pp_rank_*_mp_rank_00_model_states.pt"), key=rank_of)
    if not shards:
        state = load_tensors(path / "mp_rank_00_model_states.pt", mmap=True)
        return _drop_tied(state["module"], state["shared_params"] or {})  # None at ZeRO-0
    states = [load_tensors(shard, mmap=True) for shard in shards]
    optimizers = [
        load_tensors(found, mmap=True) for found in sorted(path.glob("*zero_pp_rank_*_optim_states.pt"), key=rank_of)
    ]
    first = states[0]
    weights = {name: first["module"][name] for name in first["buffer_names"]}
    weights |= dict(_merge_frozen(states))
    groups = [optimizer["optimizer_state_dict"]["fp32_flat_groups"] for optimizer in optimizers]
    if len(groups[0]) != len(first["param_shapes"]):  # very large groups are cut into sub-groups, in the same order
        shapes = {name: shape for group in first["param_shapes"] for name, shape in group.items()}
        return weights | dict(_merge_partitions(shapes, [torch.cat(flat) for flat in groups]))
    for index, shapes in enumerate(first["param_shapes"]):
        weights |= dict(_merge_partitions(shapes, [flat[index] for flat in groups]))
    return weights


def rank_of(path: Path) -> int:
    """Return which rank wrote one of DeepSpeed's per-rank files."""
    return int(path.name.split("zero_pp_rank_")[1].split("_")[0])


def _drop_tied(module: dict[str, torch.Tensor], tied: dict[str, str]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.items() if name not in tied}


def _merge_partitions(shapes: dict[str, torch.Size], flats: list[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter of one group from the ranks' flat vectors."""
    offset = 0
    for name, shape in shapes.items():
        count = shape.numel()
        part = -(-count // len(flats))
        whole = torch.cat([flat[offset : offset + part] for flat in flats])
        yield name, whole[:count].view(shape)
        offset += part


def _merge_frozen(states: list[dict[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters that no optimizer holds: below a LoRA adapter, or of a frozen layer."""
    for name, shape in (states[0]["frozen_param_shapes"] or {}).items():
        whole = torch.cat([state["frozen_param_fragments"][name].flatten() for state in states])
        yield name, whole[: shape.numel()].view(shape)
