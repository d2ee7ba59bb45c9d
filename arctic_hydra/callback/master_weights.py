"""The fp32 weights that the optimizer updates: this rank's part of them, or whole ones by name, at every ZeRO stage.

At ZeRO-1 to 3, and in half precision, DeepSpeed keeps them in addition to the weights of the model, which it copies from them after
each step. At ZeRO-0 every rank holds all of them. This module reads attributes of DeepSpeed's optimizers and imports nothing of
DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from arctic_hydra.distributed import gathered

_PARTITIONED = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""Where optimizers hold this rank's fp32 weights at ZeRO-1 and 2; the second with fp32 gradients in bf16 at ZeRO-1."""


def parts(engine: Any) -> list[torch.Tensor]:
    """Return this rank's fp32 weights as the tensors that the optimizer updates in place, in a fixed order.

    Flat vectors, one per group of parameters, at ZeRO-1 to 3; one tensor per parameter at ZeRO-0. Frozen weights have none.
    """
    optimizer = engine.optimizer
    for name in (*_PARTITIONED, "fp32_partitioned_groups_flat"):
        if hasattr(optimizer, name):
            return [value.detach() for value in getattr(optimizer, name)]
    held, own = list(_replicas(optimizer)), {id(parameter) for parameter in engine.module.parameters()}
    assert all(id(parameter) in own for parameter, _ in held), f"{type(optimizer).__name__} holds its weights elsewhere"
    return [master for _, master in held]


def names(engine: Any) -> list[str]:
    """Return the name of the parameter of each tensor in `parts` at ZeRO-0."""
    known = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return [known[id(parameter)] for parameter, _ in _replicas(engine.optimizer)]


def publish(engine: Any) -> None:
    """Copy the fp32 weights into the weights of the model, as a step does; collective."""
    optimizer = engine.optimizer
    with torch.no_grad():
        if hasattr(optimizer, "fp32_partitioned_groups_flat"):
            optimizer._partition_all_parameters()
            for index in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(index)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        elif any(hasattr(optimizer, name) for name in _PARTITIONED):
            optimizer.update_lp_params()
        else:
            for parameter, master in _replicas(optimizer):
                if master.data_ptr() != parameter.data_ptr():
                    parameter.data.copy_(master)


def _replicas(optimizer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each trained parameter with its fp32 weights at ZeRO-0; in fp32 they are the parameter itself."""
    if hasattr(optimizer, "fp32_groups_flat"):  # a fused optimizer: one flat vector per group
        for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
            pieces = flat.detach().split([parameter.numel() for parameter in group])
            yield from (
                (parameter, piece.view(parameter.shape)) for parameter, piece in zip(group, pieces, strict=True)
            )
    elif hasattr(optimizer, "fp32_groups"):
        for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            yield from ((parameter, master.detach()) for parameter, master in zip(group, masters, strict=True))
    else:
        yield from (
            (parameter, parameter.detach()) for group in optimizer.param_groups for parameter in group["params"]
        )


@contextmanager
def whole(engine: Any, names: Iterable[str], *, writes: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the whole weights of these parameters by name, fp32 on the device of this rank; collective.

    With `writes`, what rank 0 has changed in place becomes the weights of all ranks: those that the optimizer updates, and
    those of the model. Otherwise changes are dropped. At ZeRO-3 every rank holds these weights whole within the context.
    """
    parameters = dict(engine.module.named_parameters())
    chosen = {name: parameters[name] for name in names}
    with torch.no_grad():
        values = {name: _read(engine, parameter) for name, parameter in chosen.items()}
        yield values
        if not writes:
            return
        for name, parameter in chosen.items():
            if torch.distributed.is_initialized():
                torch.distributed.broadcast(values[name], src=0)
            _write(engine, parameter, values[name])
        publish(engine)


def _read(engine: Any, parameter: Any) -> torch.Tensor:
    value = None
    if parameter.requires_grad:
        if hasattr(parameter, "ds_id"):
            value = engine.optimizer.get_full_hp_param(parameter)
        elif hasattr(parameter, "_hp_mapping"):
            value = parameter.get_full_hp_param()
        else:
            value = _replica_of(engine, parameter)
    if value is None:
        with gathered(parameter):
            return parameter.detach().float().clone()
    return value.detach().clone()  # type: ignore[no-any-return]


def _write(engine: Any, parameter: Any, value: torch.Tensor) -> None:
    if parameter.requires_grad and hasattr(parameter, "ds_id"):
        optimizer = engine.optimizer
        part, _ = optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False)
        start = optimizer._get_param_partition_rank(parameter) * part.numel()
        mine = value.flatten()[start : start + part.numel()]  # shorter on the last rank, whose part is padded
        part.data[: mine.numel()].copy_(mine)
    elif parameter.requires_grad and hasattr(parameter, "_hp_mapping"):
        parameter.set_full_hp_param(value)
    elif parameter.requires_grad and (master := _replica_of(engine, parameter)) is not None:
        master.copy_(value)
    else:
        with gathered(parameter, writes=True):
            parameter.data.copy_(value)


def _replica_of(engine: Any, parameter: torch.Tensor) -> torch.Tensor | None:
    return next((master for trained, master in _replicas(engine.optimizer) if trained is parameter), None)
