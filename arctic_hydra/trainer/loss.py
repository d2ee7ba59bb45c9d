"""Losses over supervised positions only: rows are selected before the head projects them.

Shapes: B rows, T tokens, K supervised positions, H hidden width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from arctic_hydra.checkpoint.hf import without_adapter
from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import ModelError
from arctic_hydra.trainer.balance import Balance
from arctic_hydra.trainer.chunked import PLAIN, TokenLoss, chunked_evaluation, chunked_losses
from arctic_hydra.trainer.head import Head, model_inputs, unwrap


@dataclass(frozen=True)
class LossComputer:
    """Computes sums of token losses from an engine and, if it could be tapped, its head."""

    engine: Any
    head: Head | None
    """None: take the logits of all supervised positions at once from the model's own forward."""
    token_loss: TokenLoss = PLAIN
    liger: bool = False
    """Use Liger's fused kernel instead of chunks."""
    chunk_rows: int = 0
    """Rows of logits at a time; 0 derives it from the vocabulary size."""
    balance: Balance | None = None
    """The model's load-balancing loss, if any."""
    own_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    """The model's own loss of each position, [K], from logits [K, V] and targets [K]; training only, without a head."""

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        """Return the token losses summed over the supervised positions, in fp32.

        The load-balancing loss of a mixture of experts, if the model's config enables it, counts once per supervised
        position: divided by their number, it is added to the mean token loss as in transformers.
        """
        losses_K, router_loss = self.losses(batch)
        return losses_K.sum() + self.balance_term(router_loss, batch.num_supervised)

    def losses(
        self, batch: Batch, mean_logits_K: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the loss of each supervised position, fp32 [K], or their sum with `liger`; and the router loss, if any.

        `mean_logits_K`, which `liger` cannot fill, receives the mean of the logits of each position over the vocabulary.
        """
        with self.balance.restricted_to(batch) if self.balance else nullcontext():
            if self.head is None:
                logits_KV, output = supervised_logits(self.engine, batch)
                if mean_logits_K is not None:
                    mean_logits_K.copy_(logits_KV.detach().mean(-1, dtype=mean_logits_K.dtype))
                losses_K = self._losses_of(logits_KV, batch.targets_K)
            else:
                losses_K, output = self.head.run(
                    self.engine, batch, lambda *head: self._head_loss(batch, mean_logits_K, *head)
                )
        return losses_K, None if self.balance is None else output.aux_loss

    def balance_term(self, router_loss: torch.Tensor | None, units: int) -> torch.Tensor | float:
        """Return what the router loss of a micro-batch adds to a sum of losses over `units` units."""
        return 0.0 if router_loss is None or self.balance is None else self.balance.coefficient * units * router_loss

    def _losses_of(self, logits_KV: torch.Tensor, targets_K: torch.Tensor) -> torch.Tensor:
        if self.own_loss is None:
            return plain_losses(logits_KV, targets_K, self.token_loss)
        losses_K = self.own_loss(logits_KV.float(), targets_K)
        if losses_K.shape != targets_K.shape:
            raise ModelError(
                f"model.spec: its loss returned a tensor of shape {list(losses_K.shape)} for {len(targets_K)} positions, expected "
                f"one loss for each, [{len(targets_K)}]; pass reduction='none'"
            )
        return losses_K

    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return float64 [num_sources, 3]: plain cross-entropy, correct predictions and count, per data source."""
        if self.head is None:
            logits_KV = supervised_logits(self.engine, batch)[0].float()
            correct_K = logits_KV.argmax(-1) == batch.targets_K
            found_2K = torch.stack([plain_losses(logits_KV, batch.targets_K), correct_K.float()])
        else:
            found_2K = self.head.run(self.engine, batch, lambda *head: self._head_evaluation(batch, *head))[0]
        columns_K3 = torch.cat([found_2K, torch.ones_like(found_2K[:1])]).double().T
        sums = torch.zeros(num_sources, 3, dtype=torch.float64, device=columns_K3.device)
        return sums.index_add_(0, batch.source_K, columns_K3)

    def _head_loss(
        self,
        batch: Batch,
        mean_logits_K: torch.Tensor | None,
        hidden_BTH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self.head is not None
        hidden_KH, transform = hidden_BTH.flatten(0, 1)[batch.rows_K], self.head.transform
        if not self.liger or not batch.num_supervised:
            return chunked_losses(
                hidden_KH,
                weight_VH,
                bias_V,
                batch.targets_K,
                transform,
                self.token_loss,
                self.chunk_rows,
                mean_logits_K,
            )
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        scale = transform.scale  # of the logits, applied to the hidden states and the bias instead
        return liger_fused_linear_cross_entropy(  # type: ignore[no-any-return]
            hidden_KH if scale == 1.0 else hidden_KH * scale,
            weight_VH,
            batch.targets_K,
            bias_V if bias_V is None or scale == 1.0 else bias_V * scale,
            lse_square_scale=self.token_loss.z_loss,
            label_smoothing=self.token_loss.label_smoothing,
            reduction="sum",
            softcap=transform.softcap,
            accum_dtype=torch.float32,  # else weight gradients accumulate in bf16
        )

    def _head_evaluation(
        self, batch: Batch, hidden_BTH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None
    ) -> torch.Tensor:
        assert self.head is not None
        hidden_KH = hidden_BTH.flatten(0, 1)[batch.rows_K]
        return chunked_evaluation(hidden_KH, weight_VH, bias_V, batch.targets_K, self.head.transform, self.chunk_rows)


def supervised_logits(engine: Any, batch: Batch) -> tuple[torch.Tensor, Any]:
    """Return the logits [K, V] at the supervised positions from the model's own forward, and its output.

    With one row, transformers projects only those positions; with several (padded) rows or a model without
    `logits_to_keep`, all positions are projected and the supervised ones selected.
    """
    model = unwrap(engine)
    forward = without_adapter(model).forward
    if batch.input_ids_BT.shape[0] == 1 and "logits_to_keep" in inspect.signature(forward).parameters:
        output = engine(**model_inputs(batch), logits_to_keep=batch.rows_K)
        return output.logits[0], output
    output = engine(**model_inputs(batch))
    return output.logits.flatten(0, 1)[batch.rows_K], output


def plain_losses(logits_KV: torch.Tensor, targets_K: torch.Tensor, loss: TokenLoss = PLAIN) -> torch.Tensor:
    """Return the loss of each position, fp32 [K], from all logits at once."""
    logits_KV = logits_KV.float()
    losses_K = cross_entropy(logits_KV, targets_K, reduction="none", label_smoothing=loss.label_smoothing)
    if loss.z_loss:
        losses_K = losses_K + loss.z_loss * logits_KV.logsumexp(-1).square()
    return losses_K
