"""Scores of answers: sums of the log-probabilities of their tokens, in one place for every preference loss.

Shapes: K supervised positions, P pairs, D = 2P documents, of which chosen and rejected ones alternate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Answers:
    """One answer of each of P pairs."""

    score_P: torch.Tensor
    """fp32, the sum of the log-probabilities of its tokens."""
    tokens_P: torch.Tensor
    """Number of its tokens, int64."""

    @property
    def mean_P(self) -> torch.Tensor:
        """The mean log-probability of its tokens."""
        return self.score_P / self.tokens_P


@dataclass(frozen=True)
class Pairs:
    """The chosen and the rejected answers of P pairs."""

    chosen: Answers
    rejected: Answers

    def less(self, other: Pairs) -> Pairs:
        """Return the pairs with the scores of `other` subtracted."""
        sides = ((self.chosen, other.chosen), (self.rejected, other.rejected))
        return Pairs(*(replace(mine, score_P=mine.score_P - theirs.score_P) for mine, theirs in sides))

    def scaled(self, factor: float) -> Pairs:
        """Return the pairs with their scores multiplied."""
        return Pairs(*(replace(side, score_P=factor * side.score_P) for side in (self.chosen, self.rejected)))

    def means(self) -> Pairs:
        """Return the pairs with mean log-probabilities in place of sums."""
        return Pairs(*(replace(side, score_P=side.mean_P) for side in (self.chosen, self.rejected)))


def score_documents(logps_K: torch.Tensor, document_K: torch.Tensor, documents: int) -> torch.Tensor:
    """Return the sum of the log-probabilities of the tokens of each document, fp32 [D]."""
    return logps_K.new_zeros(documents).index_add(0, document_K, logps_K)


def score_pairs(logps_K: torch.Tensor, document_K: torch.Tensor, pairs: int, ld_alpha: float | None = None) -> Pairs:
    """Return the scores of `pairs` pairs from the log-probability and the document of each supervised token.

    With `ld_alpha`, tokens beyond the length of the pair's shorter answer count that much (LD-DPO, Liu et al. 2024).
    """
    # Unlike bincount, this does not wait for the device.
    tokens_D = document_K.new_zeros(2 * pairs).index_add(0, document_K, torch.ones_like(document_K))
    if ld_alpha is not None:
        start_D = tokens_D.cumsum(0) - tokens_D
        place_K = torch.arange(len(document_K), device=document_K.device) - start_D[document_K]
        shorter_P = torch.minimum(tokens_D[0::2], tokens_D[1::2])
        logps_K = torch.where(place_K < shorter_P[document_K // 2], logps_K, ld_alpha * logps_K)
    score_D = score_documents(logps_K, document_K, 2 * pairs)
    return Pairs(Answers(score_D[0::2], tokens_D[0::2]), Answers(score_D[1::2], tokens_D[1::2]))
