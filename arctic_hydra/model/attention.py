"""`arctic_varlen`: attention within document boundaries, on CUDA and the CPU.

Shapes: B rows, H heads, T tokens, D head size, N documents.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from arctic_hydra.distributed import sequence_group
from arctic_hydra.errors import ModelError
from arctic_hydra.model.names import VARLEN_ATTENTION
from arctic_hydra.model.ulysses import ulysses_attention

_MAX_HEAD_SIZE, _AMPERE = 256, (8, 0)
_UNSUPPORTED = {"softcap": "attention logit softcapping", "s_aux": "attention sinks"}


def register() -> None:
    """Register `arctic_varlen` with transformers, which builds no mask for a name without a mask function."""
    AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)


@torch.compiler.disable  # document boundaries differ from batch to batch
def varlen_attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each document, [B, T, H, D], and None for the attention weights.

    Packed rows have B = 1, `cu_seq_lens_q` (int32, [N+1]) and `max_length_q`. Without these, each row is one right-padded
    document, and causality keeps real tokens from attending to padding. If ranks share a sequence, T is this rank's part,
    and `cu_seq_lens_q` describes the whole sequence. Raises ModelError for a model that needs a mask or a transform which
    this function does not support.
    """
    for name, meaning in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise ModelError(
                f"model.attn_implementation: {VARLEN_ATTENTION} does not support {meaning}, which this model needs; pass eager"
            )
    if attention_mask is not None:
        raise ModelError(f"model.attn_implementation: {VARLEN_ATTENTION} does not take an attention mask; pass sdpa")
    if not getattr(module, "is_causal", True):
        raise ModelError(f"model.attn_implementation: {VARLEN_ATTENTION} is causal, but this model is not; pass sdpa")
    dropout = dropout if module.training else 0.0

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return _attend_by_document(query, key, value, scaling, dropout, sliding_window, cu_seq_lens_q, max_length_q)

    group = sequence_group()
    if group is not None:
        return ulysses_attention(attend, query_BHTD, key_BHTD, value_BHTD, group), None
    return attend(query_BHTD, key_BHTD, value_BHTD), None


def _attend_by_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    cu_seqlens: torch.Tensor | None,
    longest: int | None,
) -> torch.Tensor:
    if cu_seqlens is None:
        return _attend(query, key, value, scaling, dropout, window).transpose(1, 2).contiguous()
    if query.is_cuda and dropout == 0.0 and kernel_supports(query, key, value):
        return _varlen_cuda(query, key, value, scaling, window, cu_seqlens, longest)
    # The fake tensors of a memory estimate hold no boundaries: the row is taken as one document.
    bounds = [0, query.shape[2]] if isinstance(cu_seqlens, FakeTensor) else cu_seqlens.tolist()
    parts = [
        _attend(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scaling, dropout, window)
        for a, b in itertools.pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def kernel_supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch's `varlen_attn` supports these: half precision, one head size, a multiple of 8 up to 256, from Ampere on.

    Everything else, such as fp32 or the narrower values of DeepSeek's latent attention, is computed document by document.
    """
    size = query.shape[-1]
    same = key.shape[-1] == value.shape[-1] == size
    if query.dtype not in (torch.bfloat16, torch.float16) or not same or size % 8 or size > _MAX_HEAD_SIZE:
        return False
    return not query.is_cuda or torch.cuda.get_device_capability(query.device) >= _AMPERE


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    tokens = query.shape[2]
    mask = None
    if window is not None and tokens > window:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril_().triu_(1 - window)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def _varlen_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    cu_seqlens: torch.Tensor,
    longest: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    assert longest is not None, "packed batches carry max_length_q"
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window_size = (-1, 0) if window is None else (window - 1, 0)
    out = varlen_attn(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        window_size=window_size,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out[None]
