"""Each loss of pairs equals its formula, written here in plain Python, with its gradient."""

from __future__ import annotations

import math

import pytest
import torch

from arctic_hydra.trainer.preference.choices import PAIR_LOSS_NAMES
from arctic_hydra.trainer.preference.losses import PAIR_LOSSES, bradley_terry, cpo, log_odds_ratio, simpo
from arctic_hydra.trainer.preference.sequence_logps import Answers, Pairs


def s(x):
    return 1 / (1 + torch.exp(-x))


FORMULAS = {
    "sigmoid": lambda c, r, n, m, b, e: -(1 - e) * s(b * (c - r)).log() - e * s(b * (r - c)).log(),
    "sigmoid_norm": lambda c, r, n, m, b, e: -s(b * (c / n - r / m)).log(),
    "ipo": lambda c, r, n, m, b, e: (c / n - r / m - 1 / (2 * b)) ** 2,
    "hinge": lambda c, r, n, m, b, e: (1 - b * (c - r)).clamp(min=0),
    "robust": lambda c, r, n, m, b, e: (-(1 - e) * s(b * (c - r)).log() + e * s(b * (r - c)).log()) / (1 - 2 * e),
    "apo_zero": lambda c, r, n, m, b, e: 1 - s(b * c) + s(b * r),
    "apo_down": lambda c, r, n, m, b, e: s(b * c) + 1 - s(b * (c - r)),
    "exo_pair": lambda c, r, n, m, b, e: (
        s(b * (c - r)) * (s(b * (c - r)).log() - math.log(1 - e))
        + s(b * (r - c)) * (s(b * (r - c)).log() - math.log(e))
    ),
}
AT_REFERENCE = {
    "sigmoid": math.log(2),
    "sigmoid_norm": math.log(2),
    "ipo": 1 / (4 * 0.2**2),
    "hinge": 1.0,
    "robust": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "exo_pair": -math.log(2) - math.log(0.1 * 0.9) / 2,
}
TOKENS = torch.tensor([3, 7, 5, 2]), torch.tensor([4, 1, 5, 9])


def pairs_of(chosen, rejected):
    return Pairs(Answers(chosen, TOKENS[0]), Answers(rejected, TOKENS[1]))


def scores():
    generator = torch.Generator().manual_seed(0)
    made = [4 * torch.randn(4, generator=generator) for _ in range(2)]
    return [values.requires_grad_() for values in made]


def test_every_loss_is_tested():
    assert set(PAIR_LOSSES) == set(PAIR_LOSS_NAMES) == set(FORMULAS) == set(AT_REFERENCE)


@pytest.mark.parametrize("name", PAIR_LOSS_NAMES)
@pytest.mark.parametrize("smoothing", [1e-3, 0.1])
def test_value_and_gradient_are_those_of_the_formula(name, smoothing):
    chosen, rejected = scores()
    expected = FORMULAS[name](chosen.double(), rejected.double(), *TOKENS, 0.2, smoothing)
    wanted = torch.autograd.grad(expected.sum(), [chosen, rejected])
    found = PAIR_LOSSES[name](pairs_of(chosen, rejected), 0.2, smoothing)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(found.sum(), [chosen, rejected]), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PAIR_LOSS_NAMES)
def test_value_where_the_model_is_the_reference(name):
    found = PAIR_LOSSES[name](pairs_of(torch.zeros(4), torch.zeros(4)), 0.2, 0.1)
    torch.testing.assert_close(found, torch.full((4,), AT_REFERENCE[name]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PAIR_LOSS_NAMES)
def test_losses_of_far_apart_answers_are_finite(name):
    chosen, rejected = torch.tensor([-3e3, 3e3, 0.0, 0.0]).requires_grad_(), torch.tensor([3e3, -3e3, 0.0, 0.0])
    found = PAIR_LOSSES[name](pairs_of(chosen, rejected), 1.0, 0.1)
    assert found.isfinite().all() and torch.autograd.grad(found.sum(), chosen)[0].isfinite().all()


def test_bradley_terry_is_its_formula_and_ln_2_at_equal_scores():
    w, r = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([1.0, -2.0], [0.5, 3.0]))
    expected = -s(w - r - 0.3).log() + 0.01 * (w + r) ** 2
    found = bradley_terry(w, r, 0.3, 0.01)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(loss.sum(), (w, r)) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    equal = torch.tensor([0.7], dtype=torch.float64)
    assert float(bradley_terry(equal, equal, 0.0, 0.0)) == pytest.approx(math.log(2), abs=1e-15)
    assert torch.isfinite(bradley_terry(torch.tensor([-1e4]), torch.tensor([1e4]), 0.0, 0.0)).all()


def test_simpo_at_equal_means_and_cpo_at_equal_scores():
    means = pairs_of(-1.5 * TOKENS[0], -1.5 * TOKENS[1])
    torch.testing.assert_close(simpo(means, 2.0, 0.5), torch.full((4,), math.log1p(math.exp(0.5))), rtol=0, atol=1e-6)
    torch.testing.assert_close(cpo(pairs_of(*[-torch.ones(4)] * 2), 0.1), torch.full((4,), math.log(2)))


@pytest.mark.parametrize("mean", [-1e-6, -0.01, -0.693, -3.0, -80.0])
def test_the_odds_ratio_is_exact_near_certainty_and_far_from_it(mean):
    chosen = (mean * TOKENS[0]).requires_grad_()
    found = log_odds_ratio(pairs_of(chosen, -0.7 * TOKENS[1].float()))
    w, other = torch.tensor(mean, dtype=torch.float64), torch.tensor(-0.7, dtype=torch.float64)
    expected = (w - torch.log(-torch.expm1(w))) - (other - torch.log(-torch.expm1(other)))
    torch.testing.assert_close(found.double(), expected.expand(4), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(found.sum(), chosen)[0].isfinite().all()


def test_certain_answers_have_finite_odds():
    chosen = torch.zeros(4, requires_grad=True)
    found = log_odds_ratio(pairs_of(chosen, -TOKENS[1].float()))
    assert found.isfinite().all() and torch.autograd.grad(found.sum(), chosen)[0].isfinite().all()
