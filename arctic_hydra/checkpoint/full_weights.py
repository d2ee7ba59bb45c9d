"""Full weights on the CPU for any ZeRO stage: gathered from the ranks, or read from the files of a checkpoint.

Below ZeRO-3 one file of a checkpoint contains the whole model. At ZeRO-3 each parameter is partitioned evenly over the
ranks (the last part is padded), and a rank's parts are concatenated in one flat fp32 vector per parameter group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import xxhash

from arctic_hydra.checkpoint.writer import load_tensors
from arctic_hydra.distributed import gathered


def gather_weights(model: torch.nn.Module, *, keep: bool, beside: Path, whole: bool = False) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name, on the CPU, in the model's dtypes; collective.

    For a PEFT model these are only the tensors that its export needs, unless `whole` is set.

    Ranks with `keep` false take part in the collectives and return {}. Partitioned parameters (ZeRO-3) are gathered one at
    a time and stored in memory-mapped files in the directory `beside`, which the caller removes: device and host hold at
    most one full parameter at a time, and the system can reclaim the page cache of the files. Tied parameters are the
    same tensor under each of their names, as save_pretrained expects.

    Raises the error of a rank that cannot keep or write a weight, after all ranks have finished.
    """
    wanted = None if whole else _exported_parameters(model)
    weights: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}
    problem: Exception | None = None
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor) or (wanted is not None and id(value) not in wanted):
            continue
        if id(value) not in copies:
            copies[id(value)] = torch.empty(0)
            with gathered(value):
                # Copy inside the context: leaving it releases the full parameter.
                if keep and problem is None:
                    try:
                        copies[id(value)] = _host_copy(value, beside / f"{len(copies)}")
                    except Exception as error:  # also of too little memory; the others wait for this rank to go on
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
    with file.open("wb") as raw:  # not written through the mapping, where a full disk would raise SIGBUS
        raw.write(memoryview(whole.cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    mapped = torch.from_file(str(file), shared=False, size=whole.numel(), dtype=whole.dtype)
    return mapped.view(whole.shape)


def _exported_parameters(model: torch.nn.Module) -> set[int] | None:
    """Return the ids of the tensors that the export of a PEFT model needs, or None (all) for other models."""
    if not hasattr(model, "peft_config"):
        return None
    wrapper: Any = model
    embeddings = [wrapper.get_input_embeddings(), wrapper.get_output_embeddings()]
    kept: list[Iterable[torch.Tensor]] = [module.parameters() for module in embeddings if module is not None]
    kept.append(parameter for parameter in model.parameters() if parameter.requires_grad)
    return {id(parameter) for group in kept for parameter in group}


def checksum(model: torch.nn.Module, names: Iterable[str]) -> str:
    """Return a short hash of parameters by name, equal for every ZeRO stage and number of ranks; collective.

    It takes one pass on the device of the parameters. It detects a different base model, but not the order of the values of a
    parameter; `content_hash` does.
    """
    parameters = dict(model.named_parameters())
    digest = hashlib.sha256()
    for name in sorted(names):
        with gathered(parameters[name]):
            bits = torch.hash_tensor(parameters[name].detach()) if parameters[name].numel() else torch.zeros(1)
            digest.update(f"{name} {int(bits.item())}\n".encode())
    return digest.hexdigest()[:16]


def content_hash(model: torch.nn.Module, counts: Callable[[str], bool] = lambda _: True) -> str:
    """Return a hash of the bytes of all that the model stores, such as scales of quantized weights, or of what `counts` names.

    Equal for every ZeRO stage and number of ranks; collective. Each tensor is copied to the CPU, one at a time.
    """
    digest, seen = hashlib.sha256(), set[int]()
    stored = model.state_dict(keep_vars=True)
    for name, value in sorted(stored.items(), key=itemgetter(0)):
        if isinstance(value, torch.Tensor) and counts(name) and id(value) not in seen:
            seen.add(id(value))
            with gathered(value):
                whole = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
                digest.update(f"{name} {xxhash.xxh3_64_hexdigest(whole.numpy())}\n".encode())
    return digest.hexdigest()[:16]


def read_checkpoint_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name; tied ones once, under the first of their names.

    Tensors that a file contains whole are memory-mapped, so they take memory only when they are read.
    """
    shards = sorted(path.glob("zero_pp_rank_*_mp_rank_00_model_states.pt"), key=rank_of)
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
    return weights | _merge_groups(first["param_shapes"], groups)


def _merge_groups(shapes: list[dict[str, torch.Size]], groups: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the weights of ZeRO-3 by name, from the flat parameter groups of each rank and the shapes in each group."""
    if len(groups[0]) != len(shapes):  # very large groups are split into sub-groups, in the same order
        joined = {name: shape for group in shapes for name, shape in group.items()}
        return dict(_merge_partitions(joined, [torch.cat(flat) for flat in groups]))
    weights: dict[str, torch.Tensor] = {}
    for index, group in enumerate(shapes):
        weights |= dict(_merge_partitions(group, [flat[index] for flat in groups]))
    return weights


def read_partitioned(path: Path, callback: str) -> dict[str, torch.Tensor]:
    """Return the weights that a callback keeps in a checkpoint, divided as the optimizer's fp32 weights; {} if it keeps none."""
    files = [load_tensors(file) for file in sorted(path.glob("rank-*.pt"))]
    states = [file.get("callbacks", {}).get(callback, {}) for file in files]
    if "partitioned" not in states[0]:
        return {}
    if "names" in states[0]:  # ZeRO-0, where rank 0 has all of them
        return dict(zip(states[0]["names"], states[0]["partitioned"], strict=True))
    first = min(path.glob("*model_states.pt"))
    shapes, groups = load_tensors(first, mmap=True)["param_shapes"], [state["partitioned"] for state in states]
    if first.name.startswith("zero_pp_rank_"):
        return _merge_groups(shapes, groups)
    weights: dict[str, torch.Tensor] = {}
    for index, group in enumerate(shapes):
        whole = torch.cat([flat[index] for flat in groups])
        pieces = whole[: sum(shape.numel() for shape in group.values())].split(
            [shape.numel() for shape in group.values()]
        )
        weights |= {name: piece.view(shape) for (name, shape), piece in zip(group.items(), pieces, strict=True)}
    return weights


def rank_of(path: Path) -> int:
    """Return the rank that wrote one of DeepSpeed's per-rank files."""
    return int(path.name.split("zero_pp_rank_")[1].split("_")[0])


def _drop_tied(module: dict[str, torch.Tensor], tied: dict[str, str]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.items() if name not in tied}


def _merge_partitions(shapes: dict[str, torch.Size], flats: list[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter of one group, merged from the flat vectors of the ranks."""
    offset = 0
    for name, shape in shapes.items():
        count = shape.numel()
        part = -(-count // len(flats))
        whole = torch.cat([flat[offset : offset + part] for flat in flats])
        yield name, whole[:count].view(shape)
        offset += part


def _merge_frozen(states: list[dict[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the frozen parameters, which no optimizer holds, merged from the ranks."""
    for name, shape in (states[0]["frozen_param_shapes"] or {}).items():
        whole = torch.cat([state["frozen_param_fragments"][name].flatten() for state in states])
        yield name, whole[: shape.numel()].view(shape)
