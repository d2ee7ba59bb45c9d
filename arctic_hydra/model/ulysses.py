"""Ulysses sequence parallelism (Jacobs et al. 2023): each rank holds a part of the tokens, and part of the heads during
attention.

Before attention, an all-to-all turns [all heads, part of the tokens] into [part of the heads, all tokens]; after it,
another one turns the result back. Every other layer sees only its rank's tokens. DeepSpeed's implementation is not used: it
replaces attention for every model of the process, gathers position ids in each layer and does not support packed
sequences.

Shapes: B rows, H heads, T tokens of the whole sequence, t = T / R of this rank, D head size, R ranks of the group.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from arctic_hydra.distributed import SequenceGroup, sequence_group
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.layers import layer_configs


def check_heads(config: Any, size: int) -> None:
    """Raise ConfigError for a group size over which the model's heads cannot be distributed."""
    if size == 1:
        return
    for layer in layer_configs(config):
        heads = getattr(layer, "num_attention_heads", None)
        if not heads:
            raise ConfigError(
                f"trainer.sequence_parallel_size: got {size}, but a {config.model_type} model has no attention heads to "
                "distribute over the ranks; pass trainer.sequence_parallel_size=1"
            )
        shared = int(getattr(layer, "num_key_value_heads", None) or heads)
        if heads % size:
            raise ConfigError(
                f"trainer.sequence_parallel_size: got {size}, but the model has {heads} attention heads; expected a divisor of {heads}"
            )
        if shared % size and size % shared:
            raise ConfigError(
                f"trainer.sequence_parallel_size: got {size}, but the model has {shared} key-value heads; expected a divisor or "
                f"a multiple of {shared}"
            )


def share_positions(model: torch.nn.Module) -> None:
    """Make rotary embeddings whose frequencies depend on the longest position use that of the whole sequence, in place.

    This concerns longrope (Phi-3) and dynamic NTK: otherwise, the ranks with the beginning of a sequence would use other
    frequencies than the rest.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any(kind is not None and (kind == "longrope" or "dynamic" in kind) for kind in kinds):
            module.forward = functools.partial(_with_longest_position, module.forward)


def _with_longest_position(
    forward: Callable[..., Any], x: torch.Tensor, position_ids: torch.Tensor, *more: Any, **named: Any
) -> Any:
    group = sequence_group()
    if group is None:
        return forward(x, position_ids, *more, **named)
    longest = position_ids.max()
    dist.all_reduce(longest, dist.ReduceOp.MAX, group=group.group)
    found = forward(x, torch.cat([position_ids, longest.expand(len(position_ids), 1)], dim=1), *more, **named)
    return tuple(part[:, :-1] for part in found) if isinstance(found, tuple) else found[:, :-1]


def ulysses_attention(
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    query_BHtD: torch.Tensor,
    key_BHtD: torch.Tensor,
    value_BHtD: torch.Tensor,
    group: SequenceGroup,
) -> torch.Tensor:
    """Return `attend(query, key, value)` over the whole sequence, [B, t, H, D]: this rank's tokens, all heads.

    `attend` gets [B, H/R, T, D] and returns [B, T, H/R, D]. Key and value heads are repeated if there are fewer of them than ranks.
    """
    whole = [_scatter_heads(_repeat_heads(x, group.size), group) for x in (query_BHtD, key_BHtD, value_BHtD)]
    return _scatter_tokens(attend(*whole), group)


def _repeat_heads(x_BHtD: torch.Tensor, ranks: int) -> torch.Tensor:
    heads = x_BHtD.shape[1]
    return x_BHtD if heads >= ranks else x_BHtD.repeat_interleave(ranks // heads, dim=1)


def _scatter_heads(x_BHtD: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    B, H, t, D = x_BHtD.shape
    parts = x_BHtD.reshape(B, group.size, H // group.size, t, D).transpose(0, 1)  # one for each rank
    parts = _exchange(parts, group)  # one from each rank, in the order of the sequence
    return parts.permute(1, 2, 0, 3, 4).reshape(B, H // group.size, t * group.size, D)


def _scatter_tokens(x_BThD: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    B, T, h, D = x_BThD.shape
    parts = x_BThD.reshape(B, group.size, T // group.size, h, D).transpose(0, 1)
    parts = _exchange(parts, group)  # one from each rank, in the order of the heads
    return parts.permute(1, 2, 0, 3, 4).reshape(B, T // group.size, h * group.size, D)


def _exchange(parts: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    return _AllToAll.apply(parts.contiguous(), group.group)  # type: ignore[no-any-return,no-untyped-call]


class _AllToAll(torch.autograd.Function):
    """Send part i of the first dimension to rank i, and receive one from each; the backward pass reverses it."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        sent = gradients[0].contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=ctx.group)
        return received, None


def sum_over_group(value: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    """Return `value` summed over the ranks of the group, on all of them; its gradient is the sum of theirs."""
    return _Sum.apply(value, group.group)  # type: ignore[no-any-return,no-untyped-call]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
