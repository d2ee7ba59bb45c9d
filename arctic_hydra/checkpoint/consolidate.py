"""Full weights from a checkpoint's files alone, on the CPU: no engine, no ranks, no optimizer.

Below ZeRO-3 one file holds the whole model. At ZeRO-3 each parameter is cut evenly over the ranks (its last part
padded), and a rank's parts lie behind one another in one flat fp32 vector per parameter group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from arctic_hydra.checkpoint.writer import load_tensors


def checkpoint_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name; tied ones once, under the name that the model lists first.

    Tensors are mapped from the files where these hold them whole, so they take memory only as they are read.
    """
    [*shards] = sorted(path.glob("zero_pp_rank_*_mp_rank_00_model_states.pt"), key=rank_of)
    if not shards:
        state = load_tensors(path / "mp_rank_00_model_states.pt", mmap=True)
        return _without_tied(state["module"], state["shared_params"] or {})  # None at ZeRO-0
    states = [load_tensors(shard, mmap=True) for shard in shards]
    optimizers = [
        load_tensors(found, mmap=True) for found in sorted(path.glob("*zero_pp_rank_*_optim_states.pt"), key=rank_of)
    ]
    first = states[0]
    weights = {name: first["module"][name] for name in first["buffer_names"]}
    weights |= dict(_frozen(states))
    groups = [optimizer["optimizer_state_dict"]["fp32_flat_groups"] for optimizer in optimizers]
    if len(groups[0]) != len(first["param_shapes"]):  # very large groups are cut into sub-groups, in the same order
        shapes = {name: shape for group in first["param_shapes"] for name, shape in group.items()}
        return weights | dict(_gathered(shapes, [torch.cat(flat) for flat in groups]))
    for index, shapes in enumerate(first["param_shapes"]):
        weights |= dict(_gathered(shapes, [flat[index] for flat in groups]))
    return weights


def rank_of(path: Path) -> int:
    """Return which rank wrote one of DeepSpeed's per-rank files."""
    return int(path.name.split("zero_pp_rank_")[1].split("_")[0])


def _without_tied(module: dict[str, torch.Tensor], tied: dict[str, str]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.items() if name not in tied}


def _gathered(shapes: dict[str, torch.Size], flats: list[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter of one group from the ranks' flat vectors."""
    offset = 0
    for name, shape in shapes.items():
        count = shape.numel()
        part = -(-count // len(flats))
        whole = torch.cat([flat[offset : offset + part] for flat in flats])
        yield name, whole[:count].view(shape)
        offset += part


def _frozen(states: list[dict[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters that no optimizer holds: below a LoRA adapter, or of a frozen layer."""
    for name, shape in (states[0]["frozen_param_shapes"] or {}).items():
        whole = torch.cat([state["frozen_param_fragments"][name].flatten() for state in states])
        yield name, whole[: shape.numel()].view(shape)
