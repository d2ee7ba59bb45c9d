"""Losses over supervised positions only: rows are chosen before the head projects them.

Shapes: B rows, T tokens, K supervised positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from arctic_hydra.batch import Batch


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Return what the model's forward takes; no attention mask and no cache, so that packed documents stay apart."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids_BT,
        "position_ids": batch.position_ids_BT,
        "attention_mask": None,
        "use_cache": False,
    }
    if batch.cu_seqlens is not None:
        inputs |= {
            "cu_seq_lens_q": batch.cu_seqlens,
            "cu_seq_lens_k": batch.cu_seqlens,
            "max_length_q": batch.max_seqlen,
            "max_length_k": batch.max_seqlen,
        }
    return inputs


def supervised_logits(engine: Any, batch: Batch) -> torch.Tensor:
    """Return the logits [K, V] at the supervised positions, with everything the architecture does around its head.

    With one row, transformers projects just those positions; with several (padded) rows or a model without
    `logits_to_keep`, all are projected and then chosen from.
    """
    model = getattr(engine, "module", engine)
    if batch.input_ids_BT.shape[0] == 1 and "logits_to_keep" in inspect.signature(model.forward).parameters:
        return engine(**model_inputs(batch), logits_to_keep=batch.rows_K).logits[0]  # type: ignore[no-any-return]
    logits_BTV = engine(**model_inputs(batch)).logits
    return logits_BTV.flatten(0, 1)[batch.rows_K]  # type: ignore[no-any-return]


def token_loss_sum(engine: Any, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy summed over the supervised positions, in fp32."""
    return cross_entropy(supervised_logits(engine, batch).float(), batch.targets_K, reduction="sum")


def fused_token_loss_sum(engine: Any, batch: Batch) -> torch.Tensor:
    """Return the same sum from a model whose forward Liger patched: no logits, fp32 accumulation of the gradient."""
    targets_1K = batch.targets_K[None].contiguous()
    output = engine(
        **model_inputs(batch),
        logits_to_keep=batch.rows_K,
        labels=targets_1K,
        shift_labels=targets_1K,
        num_items_in_batch=1,
        accum_dtype=torch.float32,
    )
    return output.loss  # type: ignore[no-any-return]


def token_sums(engine: Any, batch: Batch, num_sources: int) -> torch.Tensor:
    """Return float64 [num_sources, 3]: loss, correct predictions and count, summed per data source."""
    logits_KV = supervised_logits(engine, batch).float()
    losses_K = cross_entropy(logits_KV, batch.targets_K, reduction="none").double()
    correct_K = (logits_KV.argmax(-1) == batch.targets_K).double()
    sums = torch.zeros(num_sources, 3, dtype=torch.float64, device=logits_KV.device)
    return sums.index_add_(0, batch.source_K, torch.stack([losses_K, correct_K, torch.ones_like(losses_K)], dim=1))
