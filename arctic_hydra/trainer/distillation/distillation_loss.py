"""The loss of a student from its hidden states and a teacher's predictions, one chunk of rows at a time.

Shapes: K rows (supervised positions), H hidden width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from arctic_hydra.data.batch import Batch
from arctic_hydra.trainer.chunked import AS_IS, LogitTransform, add_head_gradients, logit_chunks, slope, wide
from arctic_hydra.trainer.distillation.divergence import Targets, divergence
from arctic_hydra.trainer.loss import LossComputer, supervised_logits


@dataclass(frozen=True)
class Mix:
    """What the loss of a token is made of: `(1 - ce_share) * temperature^2 * divergence + ce_share * cross-entropy`.

    Both distributions in the divergence have their logits divided by the temperature. Its square keeps the gradients of the
    divergence at the size that they have at temperature 1 (Hinton et al. 2015), so the share means the same at any one.
    """

    beta: float = 0.0
    temperature: float = 1.0
    ce_share: float = 0.0


@dataclass(frozen=True)
class Distilled:
    """The losses of a micro-batch."""

    loss: torch.Tensor
    """The sum of the losses of its tokens, fp32, with a graph; without the load-balancing loss."""
    losses_K: torch.Tensor
    """The loss of each token, fp32, and its parts below; without a graph."""
    divergences_K: torch.Tensor
    nlls_K: torch.Tensor
    correct_K: torch.Tensor
    """Whether the student's most likely token is the target; 0 while training."""
    router_loss: torch.Tensor | None


def distill(losses: LossComputer, batch: Batch, targets: Targets, mix: Mix) -> Distilled:
    """Return the losses of the student of `losses`, which runs once. Collective at ZeRO-3."""
    found: list[torch.Tensor] = []

    def from_head(hidden_BTH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
        assert losses.head is not None
        rows_KH, transform = hidden_BTH.flatten(0, 1)[batch.rows_K], losses.head.transform
        with targets.ready(weight_VH):
            loss, figures = chunked_distillation(
                rows_KH, weight_VH, bias_V, batch.targets_K, targets, mix, transform, losses.chunk_rows
            )
        found.append(figures)
        return loss

    with losses.balance.restricted_to(batch) if losses.balance else nullcontext():
        if losses.head is None:
            logits_KV, output = supervised_logits(losses.engine, batch)
            with targets.ready(None):
                rows_3K = _token_losses(logits_KV.to(wide(logits_KV)), batch.targets_K, targets, slice(None), mix)
            loss, figures = rows_3K[0].sum(), _figures(rows_3K, logits_KV, batch.targets_K)
        else:
            loss, output = losses.head.run(losses.engine, batch, from_head)
            [figures] = found
    router_loss = None if losses.balance is None else output.aux_loss
    losses_K, divergences_K, nlls_K, correct_K = figures
    return Distilled(loss, losses_K, divergences_K, nlls_K, correct_K, router_loss)


def chunked_distillation(
    hidden_KH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_K: torch.Tensor,
    teacher: Targets,
    mix: Mix,
    transform: LogitTransform = AS_IS,
    chunk_rows: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the rows' losses, with gradients to hidden states, weight and bias, and the figures of each row.

    The figures, fp32 [4, K] without a graph, are loss, divergence, cross-entropy and whether the most likely token is the target
    (0 where gradients are wanted). The gradients are computed with the loss, so that each chunk of logits exists once and the
    teacher is not needed in the backward pass. Sums over rows and over the vocabulary are in fp32.
    """
    hidden_KH = hidden_KH.to(weight_VH.dtype)
    if not torch.is_grad_enabled():
        figures = torch.empty(4, len(targets_K), dtype=wide(weight_VH), device=weight_VH.device)
        for part, logits_CV in logit_chunks(hidden_KH, weight_VH, bias_V, transform, chunk_rows):
            rows_3C = _token_losses(logits_CV, targets_K[part], teacher, part, mix)
            figures[:, part] = _figures(rows_3C, logits_CV, targets_K[part])
        return figures[0].sum(), figures
    return _ChunkedDistillation.apply(  # type: ignore[no-any-return,no-untyped-call]
        hidden_KH, weight_VH, bias_V, targets_K, teacher, mix, transform, chunk_rows
    )


def _token_losses(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, teacher: Targets, part: slice, mix: Mix
) -> torch.Tensor:
    """Return loss, divergence and cross-entropy of each row of fp32 logits, [3, C]."""
    scaled_CV = logits_CV if mix.temperature == 1.0 else logits_CV / mix.temperature
    divergence_C = mix.temperature**2 * divergence(*teacher.classes(part, scaled_CV), mix.beta)
    nll_C = cross_entropy(logits_CV if mix.ce_share else logits_CV.detach(), targets_C, reduction="none")
    return torch.stack([(1 - mix.ce_share) * divergence_C + mix.ce_share * nll_C, divergence_C, nll_C])


def _figures(rows_3C: torch.Tensor, logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """Return the rows of `_token_losses` without a graph, and whether the most likely token is the target, [4, C]."""
    correct_C = logits_CV.detach().argmax(-1) == targets_C
    return torch.cat([rows_3C.detach(), correct_C[None].to(rows_3C.dtype)])


class _ChunkedDistillation(torch.autograd.Function):
    """The sum of row losses, whose gradients are computed in the forward pass, for a gradient of 1 of the sum."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_K: torch.Tensor,
        teacher: Targets,
        mix: Mix,
        transform: LogitTransform,
        chunk_rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = (hidden_KH, weight_VH, bias_V)
        dtype = wide(weight_VH)
        grads = [
            torch.zeros_like(tensor, dtype=dtype) if tensor is not None and wanted else None
            for tensor, wanted in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        figures = torch.zeros(4, len(targets_K), dtype=dtype, device=weight_VH.device)
        for part, logits_CV in logit_chunks(hidden_KH, weight_VH, bias_V, transform, chunk_rows):
            with torch.enable_grad():
                rows_3C = _token_losses(logits_CV.requires_grad_(), targets_K[part], teacher, part, mix)
                [grad_CV] = torch.autograd.grad(rows_3C[0].sum(), logits_CV)
            figures[:3, part] = rows_3C.detach()
            slope_CV = slope(logits_CV.detach(), transform)
            if slope_CV is not None:
                grad_CV = grad_CV * slope_CV
            add_head_gradients(grads, grad_CV, part, hidden_KH[part], weight_VH)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        ctx.mark_non_differentiable(figures)
        return figures[0].sum(), figures

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        scaled = [
            None if saved is None else torch.mul(saved, grad, out=torch.empty_like(saved, dtype=dtype))
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None, None)
