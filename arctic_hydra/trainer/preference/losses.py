"""The losses of preferences, from the scores of answers under the model and under the reference.

A score is the sum of the log-probabilities of an answer's tokens. With c and r the scores of the chosen and the rejected
answer less those of the reference, D = c - r, n the answers' numbers of tokens, s the logistic function, b = beta and
e = label smoothing, the loss of a pair is

- sigmoid: -(1-e) log s(bD) - e log s(-bD) (DPO, Rafailov et al. 2023; with e > 0 cDPO, Mitchell 2023)
- sigmoid_norm: -log s(b (c/n_c - r/n_r)) (Tulu 3, Lambert et al. 2024)
- ipo: (c/n_c - r/n_r - 1/(2b))^2 (Azar et al. 2023)
- hinge: max(0, 1 - bD) (SLiC, Zhao et al. 2023)
- robust: (-(1-e) log s(bD) + e log s(-bD)) / (1-2e) (Chowdhury et al. 2024)
- apo_zero: 1 - s(bc) + s(br); apo_down: s(bc) + 1 - s(bD) (D'Oosterlinck et al. 2024)
- exo_pair: s(bD) (log s(bD) - log(1-e)) + s(-bD) (log s(-bD) - log e) (Ji et al. 2024)

Shapes: P pairs, D documents with one labelled answer each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid

from arctic_hydra.trainer.preference.sequence_logps import Pairs

PairLoss = Callable[[Pairs, float, float], torch.Tensor]
"""Computes the losses [P] from scores less those of the reference, beta and label smoothing."""


def _difference(pairs: Pairs, beta: float) -> torch.Tensor:
    return beta * (pairs.chosen.score_P - pairs.rejected.score_P)


def _sigmoid(pairs: Pairs, beta: float, smoothing: float) -> torch.Tensor:
    d_P = _difference(pairs, beta)
    return -(1 - smoothing) * logsigmoid(d_P) - smoothing * logsigmoid(-d_P)


def _sigmoid_norm(pairs: Pairs, beta: float, smoothing: float) -> torch.Tensor:
    return -logsigmoid(beta * (pairs.chosen.mean_P - pairs.rejected.mean_P))


def _ipo(pairs: Pairs, beta: float, smoothing: float) -> torch.Tensor:
    return (pairs.chosen.mean_P - pairs.rejected.mean_P - 1 / (2 * beta)).square()


def _hinge(pairs: Pairs, beta: float, smoothing: float) -> torch.Tensor:
    return (1 - _difference(pairs, beta)).relu()


def _robust(pairs: Pairs, beta: float, smoothing: float) -> torch.Tensor:
    d_P = _difference(pairs, beta)
    return (-(1 - smoothing) * logsigmoid(d_P) + smoothing * logsigmoid(-d_P)) / (1 - 2 * smoothing)


def _apo_zero(pairs: Pairs, beta: float, smoothing: float) -> torch.Tensor:
    return 1 - (beta * pairs.chosen.score_P).sigmoid() + (beta * pairs.rejected.score_P).sigmoid()


def _apo_down(pairs: Pairs, beta: float, smoothing: float) -> torch.Tensor:
    return (beta * pairs.chosen.score_P).sigmoid() + 1 - _difference(pairs, beta).sigmoid()


def _exo_pair(pairs: Pairs, beta: float, smoothing: float) -> torch.Tensor:
    d_P = _difference(pairs, beta)
    towards = d_P.sigmoid() * (logsigmoid(d_P) - math.log1p(-smoothing))
    return towards + (-d_P).sigmoid() * (logsigmoid(-d_P) - math.log(smoothing))


PAIR_LOSSES: dict[str, PairLoss] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "exo_pair": _exo_pair,
}
"""The losses by the names of `choices.PAIR_LOSS_NAMES`."""


def simpo(pairs: Pairs, beta: float, gamma: float) -> torch.Tensor:
    """Return -log s(beta (w - l) - gamma) [P] of mean log-probabilities w and l (SimPO, Meng et al. 2024)."""
    return -logsigmoid(beta * (pairs.chosen.mean_P - pairs.rejected.mean_P) - gamma)


def cpo(pairs: Pairs, beta: float) -> torch.Tensor:
    """Return -log s(beta (w - l)) [P] of scores w and l (CPO, Xu et al. 2024), without its term of the chosen tokens."""
    return -logsigmoid(_difference(pairs, beta))


def log_odds_ratio(pairs: Pairs) -> torch.Tensor:
    """Return log(odds(w) / odds(l)) [P] for the mean log-probabilities w and l, odds(x) = e^x / (1 - e^x).

    ORPO, Hong et al. 2024, eq. 7.
    """
    chosen_P, rejected_P = (side.mean_P.clamp(max=-_LEAST) for side in (pairs.chosen, pairs.rejected))
    return (chosen_P - rejected_P) - (_log1mexp(chosen_P) - _log1mexp(rejected_P))


def kto(gained_D: torch.Tensor, desirable_D: torch.Tensor, kl: torch.Tensor, beta: float) -> torch.Tensor:
    """Return 1 - s(b (c - z)) of each desirable and 1 - s(b (z - c)) of each undesirable answer [D] (Ethayarajh et al. 2024).

    c are scores less those of the reference, z is `kl`, an estimate of the divergence from the reference.
    """
    above_D = beta * (gained_D - kl)
    return torch.where(desirable_D, -above_D, above_D).sigmoid()


_LEAST = 1e-10
"""A mean log-probability of 0 has infinite odds."""


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 - e^x) for x < 0, exact near 0 and far from it (Maechler 2012)."""
    near = x > -math.log(2)
    # Each branch gets arguments at which it is finite: the gradient of the branch that is not taken would else be NaN.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def bradley_terry(
    chosen_P: torch.Tensor, rejected_P: torch.Tensor, margin: torch.Tensor | float, centering: float
) -> torch.Tensor:
    """Return -log s(w - l - margin) + centering (w + l)^2 [P] of a reward model's scores w and l, with one margin or one of each pair.

    Ouyang et al. 2022, eq. 1; the margin is that of Touvron et al. 2023, the centering that of Eisenstein et al. 2023.
    """
    return -logsigmoid(chosen_P - rejected_P - margin) + centering * (chosen_P + rejected_P).square()
