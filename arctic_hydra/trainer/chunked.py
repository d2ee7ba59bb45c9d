"""Token losses from hidden states, one chunk of rows at a time, so that the logits of all rows never exist at once.

Shapes: K rows (supervised positions), H hidden width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

_CHUNK_BYTES = 2**26
"""Default size of a chunk's logits in fp32: large enough for fast matrix products."""


@dataclass(frozen=True)
class LogitTransform:
    """An architecture's transform of its logits: `x * scale`, then `softcap * tanh(x / softcap)` if there is a cap."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the transformed logits; may reuse the memory of `logits`."""
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


@dataclass(frozen=True)
class TokenLoss:
    """The loss of one token, from its logits x and its target y.

    `-log p_y`, or with label smoothing s (Szegedy et al. 2016) `(1 - s) * -log p_y + s * mean_v(-log p_v)`; plus
    `z_loss * logsumexp(x)^2` (PaLM, Chowdhery et al. 2022, section 5), which keeps the normalizer near 1.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0


AS_IS = LogitTransform()
PLAIN = TokenLoss()


def default_chunk_rows(vocabulary: int) -> int:
    """Return how many rows of fp32 logits fit into a chunk; at least 16."""
    return max(16, _CHUNK_BYTES // (4 * vocabulary))


def chunked_losses(
    hidden_KH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_K: torch.Tensor,
    transform: LogitTransform = AS_IS,
    loss: TokenLoss = PLAIN,
    chunk_rows: int = 0,
    mean_logits_K: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of each row, fp32 [K], with gradients to hidden states, weight and bias.

    `mean_logits_K` receives the mean of each row's logits over the vocabulary, without gradients.

    The backward pass recomputes each chunk's logits and uses the saved logsumexp of each row, so nothing of size V is kept
    between the passes. Products run in the dtype of the weight; sums over rows and over the vocabulary in fp32. Under autocast
    they run in its dtype in both passes, on a copy of the weight that is kept between them.
    """
    rows, dtype = chunk_rows or default_chunk_rows(weight_VH.shape[0]), product_dtype(weight_VH)
    bias_V = None if bias_V is None else bias_V.to(dtype)
    return _ChunkedLosses.apply(  # type: ignore[no-any-return,no-untyped-call]
        hidden_KH.to(dtype), weight_VH.to(dtype), bias_V, targets_K, transform, loss, rows, mean_logits_K
    )


def product_dtype(weight_VH: torch.Tensor) -> torch.dtype:
    """Return the dtype that products with the weight have here; a backward pass runs outside of autocast."""
    device = weight_VH.device.type
    is_cast = torch.is_autocast_enabled(device) and weight_VH.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_cast else weight_VH.dtype


def chunked_evaluation(
    hidden_KH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_K: torch.Tensor,
    transform: LogitTransform = AS_IS,
    chunk_rows: int = 0,
) -> torch.Tensor:
    """Return plain cross-entropy and whether the most likely token is the target, fp32 [2, K]; no gradients."""
    found = torch.empty(2, len(targets_K), dtype=wide(weight_VH), device=weight_VH.device)
    with torch.no_grad():
        hidden_KH = hidden_KH.to(weight_VH.dtype)
        for part, logits_CV in logit_chunks(hidden_KH, weight_VH, bias_V, transform, chunk_rows):
            found[1, part] = (logits_CV.argmax(-1) == targets_K[part]).to(found.dtype)
            target_C = logits_CV.gather(1, targets_K[part, None])[:, 0]
            found[0, part] = _logsumexp(logits_CV) - target_C
    return found


def logit_chunks(
    hidden_KH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    transform: LogitTransform,
    chunk_rows: int,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the rows and the logits [C, V] of each chunk, in fp32; the caller may overwrite them."""
    rows = chunk_rows or default_chunk_rows(weight_VH.shape[0])
    for start in range(0, len(hidden_KH), rows):
        part = slice(start, start + rows)
        yield part, transform(linear(hidden_KH[part], weight_VH, bias_V).to(wide(weight_VH)))


class _ChunkedLosses(torch.autograd.Function):
    """Row losses that save the logsumexp and compute the logits twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_K: torch.Tensor,
        transform: LogitTransform,
        loss: TokenLoss,
        rows: int,
        mean_logits_K: torch.Tensor | None,
    ) -> torch.Tensor:
        losses_K = torch.empty(len(targets_K), dtype=wide(weight_VH), device=weight_VH.device)
        lse_K = torch.empty_like(losses_K)
        for part, logits_CV in logit_chunks(hidden_KH, weight_VH, bias_V, transform, rows):
            chosen_C = logits_CV.gather(1, targets_K[part, None])[:, 0].mul_(1 - loss.label_smoothing)
            if loss.label_smoothing:
                chosen_C += loss.label_smoothing * logits_CV.mean(-1)
            if mean_logits_K is not None:
                mean_logits_K[part] = logits_CV.mean(-1)
            lse_K[part] = _logsumexp(logits_CV)
            losses_K[part] = lse_K[part] - chosen_C
        if loss.z_loss:
            losses_K += loss.z_loss * lse_K.square()
        ctx.save_for_backward(hidden_KH, weight_VH, bias_V, targets_K, lse_K)
        ctx.settings = transform, loss, rows
        return losses_K

    @staticmethod
    def backward(ctx: Any, grad_K: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        hidden_KH, weight_VH, bias_V, targets_K, lse_K = ctx.saved_tensors
        transform, loss, rows = ctx.settings
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden_KH = torch.empty_like(hidden_KH) if wants_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=wide(weight_VH)) if wants_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=wide(weight_VH)) if wants_bias else None
        grad_K = grad_K.to(lse_K.dtype)
        for part, logits_CV in logit_chunks(hidden_KH, weight_VH, bias_V, transform, rows):
            slope_CV = slope(logits_CV, transform)
            grad_CV = logits_CV.sub_(lse_K[part, None]).exp_()  # the probabilities
            grad_CV.mul_((grad_K[part] * (1 + 2 * loss.z_loss * lse_K[part]))[:, None])
            grad_CV.scatter_add_(1, targets_K[part, None], (grad_K[part] * (loss.label_smoothing - 1))[:, None])
            if loss.label_smoothing:
                grad_CV.sub_((grad_K[part] * (loss.label_smoothing / len(weight_VH)))[:, None])
            if slope_CV is not None:
                grad_CV.mul_(slope_CV)
            add_head_gradients((grad_hidden_KH, grad_weight_VH, grad_bias_V), grad_CV, part, hidden_KH[part], weight_VH)
        grads = (grad_hidden_KH, _cast(grad_weight_VH, weight_VH), _cast(grad_bias_V, bias_V))
        return (*grads, None, None, None, None, None)


def slope(logits_CV: torch.Tensor, transform: LogitTransform) -> torch.Tensor | float | None:
    """Return the derivative of the transform at the transformed logits, or None if it is 1 everywhere."""
    if transform.softcap is None:
        return None if transform.scale == 1.0 else transform.scale
    return logits_CV.div(transform.softcap).square_().mul_(-transform.scale).add_(transform.scale)


def _logsumexp(logits_CV: torch.Tensor) -> torch.Tensor:
    """Return logsumexp over the vocabulary [C]; overwrites the logits, because torch's own needs twice their memory."""
    peak_C1 = logits_CV.amax(-1, keepdim=True)
    return logits_CV.sub_(peak_C1).exp_().sum(-1).log_().add_(peak_C1[:, 0])


def add_head_gradients(
    grads: Sequence[torch.Tensor | None],
    grad_CV: torch.Tensor,
    part: slice,
    hidden_CH: torch.Tensor,
    weight_VH: torch.Tensor,
) -> None:
    """Add the gradients that a chunk of rows gives to hidden states, weight and bias; None marks one that is not wanted.

    `grad_CV` is that of the chunk's logits before their transform. Those of hidden states are set at the rows of `part`.
    """
    grad_hidden_KH, grad_weight_VH, grad_bias_V = grads
    if grad_bias_V is not None:
        grad_bias_V += grad_CV.sum(0)
    grad_CV = grad_CV.to(weight_VH.dtype)
    if grad_hidden_KH is not None:
        grad_hidden_KH[part] = grad_CV @ weight_VH
    if grad_weight_VH is not None:
        _add_product(grad_weight_VH, grad_CV.t(), hidden_CH)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add `a @ b` to `total`, which is fp32 even if the factors are half precision."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def _cast(grad: torch.Tensor | None, like: torch.Tensor | None) -> torch.Tensor | None:
    return None if grad is None or like is None else grad.to(like.dtype)


def wide(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype of sums: fp32, or fp64 for fp64."""
    return torch.promote_types(tensor.dtype, torch.float32)
