"""The divergence of a student's predictions from a teacher's, over the vocabulary or over the teacher's most likely tokens.

Shapes: C rows of a chunk, V vocabulary, B classes that the vocabulary is divided into, K supervised positions, N most likely tokens.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from arctic_hydra.trainer.chunked import wide


class Targets(Protocol):
    """A teacher's predictions at the supervised positions of one batch."""

    def ready(self, student_VH: torch.Tensor | None) -> AbstractContextManager[Any]:
        """Return a context in which `classes` may be called; `student_VH` is the weight of the student's head, if it is read."""

    def classes(self, part: slice, scaled_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities of B classes of tokens under student and teacher, fp32 [C, B], at the rows of `part`.

        `scaled_CV` are the student's logits there, divided by the temperature, whose graph the first result continues.
        """


def divergence(student_CB: torch.Tensor, teacher_CB: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the generalized Jensen-Shannon divergence of each row, [C], from log-probabilities over B classes; never negative.

    `beta` 0 is KL(T||S), 1 is KL(S||T); in between it is `beta * KL(T||M) + (1 - beta) * KL(S||M)` with the mixture
    `M = (1 - beta) * S + beta * T` (Agarwal et al. 2023), which tends to 0 at both ends.
    """
    return _Divergence.apply(student_CB, teacher_CB, beta)  # type: ignore[no-any-return,no-untyped-call]


class _Divergence(torch.autograd.Function):
    """The divergence, whose derivative by the student's log-probabilities takes one tensor of their size."""

    @staticmethod
    def forward(ctx: Any, student_CB: torch.Tensor, teacher_CB: torch.Tensor, beta: float) -> torch.Tensor:
        if beta == 0:
            weight_CB = teacher_CB.exp()
            found_C, slope_CB = _terms(weight_CB, teacher_CB, student_CB).sum(-1), weight_CB.neg_()
        elif beta == 1:
            weight_CB = student_CB.exp()
            terms_CB = _terms(weight_CB, student_CB, teacher_CB)
            found_C, slope_CB = terms_CB.sum(-1), terms_CB.add_(weight_CB)
        else:
            weight_CB, teacher_weight_CB = student_CB.exp(), teacher_CB.exp()
            mixture_CB = torch.lerp(weight_CB, teacher_weight_CB, beta)
            mixture_CB.clamp_(min=torch.finfo(mixture_CB.dtype).tiny).log_()  # below it, neither side has weight
            found_C = _terms(teacher_weight_CB, teacher_CB, mixture_CB).sum(-1).mul_(beta)
            # The derivatives by the mixture and by the student's weight cancel.
            slope_CB = _terms(weight_CB, student_CB, mixture_CB).mul_(1 - beta)
            found_C += slope_CB.sum(-1)
        ctx.save_for_backward(slope_CB)
        return found_C.clamp_(min=0)  # sums of a nearly equal student round to either side of 0

    @staticmethod
    def backward(ctx: Any, grad_C: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        [slope_CB] = ctx.saved_tensors
        return slope_CB * grad_C[:, None], None, None


def _terms(weight_CB: torch.Tensor, log_CB: torch.Tensor, other_CB: torch.Tensor) -> torch.Tensor:
    """Return the terms of a KL divergence; those without weight are 0, also where a logarithm is -inf."""
    return torch.where(weight_CB > 0, log_CB - other_CB, 0.0).mul_(weight_CB)


@dataclass(frozen=True)
class WholeLogits:
    """Every logit of a teacher, each token a class; rows of the vocabulary that only one model has are left out."""

    logits_KV: torch.Tensor
    temperature: float

    def ready(self, student_VH: torch.Tensor | None) -> AbstractContextManager[Any]:
        """Return a context that does nothing."""
        return nullcontext()

    def classes(self, part: slice, scaled_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities of the tokens that both models have."""
        return of_common_tokens(scaled_CV, self.logps(part, scaled_CV.shape[-1]))

    def logps(self, part: slice, vocabulary: int) -> torch.Tensor:
        """Return the teacher's log-probabilities over its first `vocabulary` tokens, fp32, at the rows of `part`."""
        logits_CV = self.logits_KV[part, :vocabulary]
        return (logits_CV.to(wide(logits_CV)) / self.temperature).log_softmax(-1)


def of_common_tokens(scaled_CV: torch.Tensor, teacher_CB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities of the student, from its logits, over the tokens of a teacher's log-probabilities, and these.

    Models of one family pad their embeddings to different sizes; no token has the rows beyond the smaller one.
    """
    return scaled_CV[:, : teacher_CB.shape[-1]].log_softmax(-1), teacher_CB


@dataclass(frozen=True)
class MostLikely:
    """A teacher's N most likely tokens of each position, and one class of all other tokens, which is empty if there are none.

    The divergence over these N + 1 classes is a lower bound of that over the vocabulary. The probabilities are those at the
    temperature of the student's scaled logits, since none can be applied to a sum afterwards.
    """

    ids_KN: torch.Tensor
    """int32 or int64."""
    logps_KN: torch.Tensor
    """fp32."""
    tail_K: torch.Tensor
    """fp32, the logarithm of the probability of all other tokens; may be -inf."""
    vocabulary: int | None = None
    """Number of tokens that both models have; all of the student's when None."""

    def ready(self, student_VH: torch.Tensor | None) -> AbstractContextManager[Any]:
        """Return a context that does nothing."""
        return nullcontext()

    def classes(self, part: slice, scaled_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities of the teacher's N tokens and of the class of the others, which comes last."""
        ids_CN, scaled_CV = self.ids_KN[part].long(), scaled_CV[:, : self.vocabulary]
        total_C1 = scaled_CV.logsumexp(-1, keepdim=True)
        # Not log(1 - sum), which loses the digits of a small rest.
        rest_C1 = scaled_CV.scatter(1, ids_CN, -math.inf).logsumexp(-1, keepdim=True)
        student_CB = torch.cat([scaled_CV.gather(1, ids_CN), rest_C1], dim=1) - total_C1
        return student_CB, torch.cat([self.logps_KN[part], self.tail_K[part, None]], dim=1)
