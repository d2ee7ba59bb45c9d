"""Resharding of a checkpoint: DeepSpeed's files, partitioned for another number of ranks.

ZeRO-1 and 2 split one flat vector per parameter group into equal, aligned parts; ZeRO-3 splits every parameter.
Optimizer moments are split like the fp32 weights. RNG states belong to one rank and cannot be carried over.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from arctic_hydra.checkpoint.full_weights import rank_of
from arctic_hydra.checkpoint.writer import load_tensors

_ALIGNMENT = 2
"""ZeRO-1 and 2 pad a flat group to a multiple of this number of elements per rank."""


def reshard(source: Path, target: Path, ranks: int) -> None:
    """Write DeepSpeed's files of the checkpoint `source` to `target`, as `ranks` ranks would have written them.

    Raises ValueError for an unknown layout.
    """
    target.mkdir()
    try:
        models = sorted(source.glob("*model_states.pt"))
        partitioned = models[0].name.startswith("zero_pp_rank_")
        states = [load_tensors(path, mmap=True) for path in (sorted(models, key=rank_of) if partitioned else models)]
        shards = sorted(source.glob("*_optim_states.pt"), key=rank_of)
        for rank in range(ranks if partitioned else 1):
            name = models[0].name.replace("zero_pp_rank_0_", f"zero_pp_rank_{rank}_")
            state = {**states[0], "dp_world_size": ranks}
            if state.get("frozen_param_fragments"):
                state["frozen_param_fragments"] = _repartition_frozen(states, rank, ranks)
            torch.save(state, target / name)
        if shards:
            optimizers = [load_tensors(path, mmap=True) for path in shards]
            for rank in range(ranks):
                repartitioned = _repartition_optimizer(optimizers, states[0]["param_shapes"], rank, ranks)
                torch.save(repartitioned, target / shards[0].name.replace("zero_pp_rank_0_", f"zero_pp_rank_{rank}_"))
    except BaseException:
        shutil.rmtree(target)
        raise


def redistribute_callbacks(
    source: Path, states: list[dict[str, Any]], rank: int, ranks: int
) -> dict[str, dict[str, Any]]:
    """Return the states of the callbacks for one of `ranks` ranks, from the `states` of the ranks that saved `source`.

    These are the states of rank 0; tensors under `partitioned` are divided as the optimizer's fp32 weights.
    """
    made = dict(states[0].get("callbacks", {}))
    for name, held in made.items():
        if "partitioned" in held and any(source.glob("*_optim_states.pt")):
            parts = [state["callbacks"][name]["partitioned"] for state in states]
            made[name] = {**held, "partitioned": _repartition_weights(source, parts, rank, ranks)}
    return made


def _repartition_weights(source: Path, parts: list[list[torch.Tensor]], rank: int, ranks: int) -> list[torch.Tensor]:
    first = min(source.glob("*model_states.pt"))
    repartition = _repartition_parameters if first.name.startswith("zero_pp_rank_") else _repartition_group
    shapes = load_tensors(first, mmap=True)["param_shapes"]
    return [repartition(group, rank, ranks)([part[index] for part in parts]) for index, group in enumerate(shapes)]


def _repartition_optimizer(
    shards: list[dict[str, Any]], shapes: list[dict[str, torch.Size]], rank: int, ranks: int
) -> dict[str, Any]:
    states = [shard["optimizer_state_dict"] for shard in shards]
    stage3 = "fp32_flat_groups" in states[0]
    inner, flat = (
        ("optimizer_state_dict", "fp32_flat_groups")
        if stage3
        else ("base_optimizer_state", "single_partition_of_fp32_groups")
    )
    if inner not in states[0] or flat not in states[0] or len(states[0][flat]) != len(shapes):
        raise ValueError("its optimizer files have a layout that cannot be resharded to another number of ranks")
    state = dict(states[0])
    repartitions = [
        _repartition_parameters(group, rank, ranks) if stage3 else _repartition_group(group, rank, ranks)
        for group in shapes
    ]
    state[flat] = [repartition([old[flat][index] for old in states]) for index, repartition in enumerate(repartitions)]
    base = {**state[inner], "state": {}}
    for index, repartition in enumerate(repartitions):
        moments = [old[inner]["state"][index] for old in states]
        base["state"][index] = {
            name: repartition([moment[name] for moment in moments]) if _is_partitioned(value) else value
            for name, value in moments[0].items()
        }
    state[inner] = base
    if not stage3:
        parts = [_part_length(group, ranks) for group in shapes]
        over = [part * (rank + 1) - _total(group) for part, group in zip(parts, shapes, strict=True)]
        paddings = [max(0, min(part, more)) for part, more in zip(parts, over, strict=True)]
        state["group_paddings"] = paddings
        state[flat] = [whole[: len(whole) - padding] for whole, padding in zip(state[flat], paddings, strict=True)]
    count = state["partition_count"]
    state["partition_count"] = [ranks] * len(count) if isinstance(count, list) else ranks
    return {**shards[0], "optimizer_state_dict": state}


def _is_partitioned(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 1


def _total(shapes: dict[str, torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes.values())


def _part_length(shapes: dict[str, torch.Size], ranks: int) -> int:
    """Return the length of one rank's part of a flat group, including padding."""
    unit = _ALIGNMENT * ranks
    return -(-_total(shapes) // unit) * unit // ranks


def _repartition_group(shapes: dict[str, torch.Size], rank: int, ranks: int) -> Any:
    total, part = _total(shapes), _part_length(shapes, ranks)

    def repartition(parts: list[torch.Tensor]) -> torch.Tensor:
        whole = torch.cat([value.flatten() for value in parts])[:total]
        return _padded(whole[rank * part : (rank + 1) * part], part)

    return repartition


def _repartition_parameters(shapes: dict[str, torch.Size], rank: int, ranks: int) -> Any:
    def repartition(parts: list[torch.Tensor]) -> torch.Tensor:
        offset, mine = 0, []
        for shape in shapes.values():
            old = -(-shape.numel() // len(parts))
            whole = torch.cat([value[offset : offset + old] for value in parts])[: shape.numel()]
            mine.append(_slice(whole, rank, ranks))
            offset += old
        return torch.cat(mine)

    return repartition


def _slice(whole: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    part = -(-whole.numel() // ranks)
    return _padded(whole[rank * part : (rank + 1) * part], part)


def _padded(values: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, length - values.numel())).clone()


def _repartition_frozen(states: list[dict[str, Any]], rank: int, ranks: int) -> dict[str, torch.Tensor]:
    partitions = {}
    for name, shape in states[0]["frozen_param_shapes"].items():
        whole = torch.cat([state["frozen_param_fragments"][name].flatten() for state in states])[: shape.numel()]
        partitions[name] = _slice(whole, rank, ranks)
    return partitions
