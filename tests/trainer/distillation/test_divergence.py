"""The divergence over all tokens and over a teacher's most likely ones, against its formula in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from arctic_hydra.trainer.distillation.divergence import MostLikely, WholeLogits, divergence

BETAS = [0.0, 0.5, 0.3, 1.0]


def formula(student, teacher, beta):
    """Return the divergence of each row from probabilities, as the docstring has it."""

    def kl(p, q):
        return torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)

    if beta in (0, 1):
        return kl(student, teacher) if beta else kl(teacher, student)
    mixture = (1 - beta) * student + beta * teacher
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def logits(rows=6, vocabulary=29, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("beta", BETAS)
def test_value_and_gradient_are_those_of_the_formula(beta):
    found = []
    for function in (
        lambda s, t: divergence(s.log_softmax(-1), t.log_softmax(-1), beta),
        lambda s, t: formula(s.softmax(-1), t.softmax(-1), beta),
    ):
        student, teacher = logits().requires_grad_(), logits(seed=1)
        value = function(student, teacher)
        (value * torch.arange(1.0, 7)).sum().backward()
        found.append((value, student.grad))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_it_is_zero_at_the_teacher_and_never_negative(beta):
    teacher = logits(rows=200, vocabulary=997).float()
    at_teacher = teacher.clone().requires_grad_()
    value = divergence(at_teacher.log_softmax(-1), teacher.log_softmax(-1), beta)
    value.sum().backward()
    assert (value >= 0).all() and value.max() < 1e-6 and at_teacher.grad.abs().max() < 1e-6
    assert beta not in (0, 1) or not value.any()
    near = (teacher + 1e-4 * torch.randn(teacher.shape)).bfloat16().float()  # a bf16 teacher
    assert (divergence(near.log_softmax(-1), teacher.log_softmax(-1), beta) >= 0).all()


@pytest.mark.parametrize("beta", BETAS)
def test_classes_without_probability_are_exact(beta):
    student, teacher = torch.tensor([[0.25, 0.75]]).double(), torch.tensor([[1.0, 0.0]]).double()
    student.requires_grad_()
    value = divergence(student.log(), teacher.log(), beta)
    expected = formula(student, teacher, beta)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.sum().backward()
    assert beta == 1 or student.grad.isfinite().all()


def test_rows_that_only_one_vocabulary_has_are_left_out():
    student, teacher = logits(vocabulary=29), logits(vocabulary=32, seed=1)
    wide, narrow = WholeLogits(teacher, 2.0), WholeLogits(teacher[:, :24], 2.0)
    for targets, common in ((wide, 29), (narrow, 24)):
        ours, theirs = targets.classes(slice(1, 4), student[1:4])
        torch.testing.assert_close(ours, student[1:4, :common].log_softmax(-1))
        torch.testing.assert_close(theirs, (teacher[1:4, :common] / 2.0).log_softmax(-1))


def most_likely(teacher, count):
    logps = teacher.log_softmax(-1)
    top = logps.topk(count, -1)
    tail = torch.log1p(-top.values.exp().sum(-1))
    return MostLikely(top.indices, top.values, tail)


@pytest.mark.parametrize("beta", BETAS)
def test_the_most_likely_tokens_and_the_rest_are_classes(beta):
    teacher, part = logits(seed=1), slice(2, 5)
    targets, found = most_likely(teacher, 7), []
    for summed in (False, True):
        student = logits()[part].requires_grad_()
        if summed:  # each class of other tokens as its sum of probabilities
            ids = targets.ids_KN[part]
            pairs = [logits_of.softmax(-1) for logits_of in (student, teacher[part])]
            sides = [torch.cat([p.gather(1, ids), 1 - p.gather(1, ids).sum(-1, keepdim=True)], 1) for p in pairs]
            value = formula(*sides, beta)
        else:
            value = divergence(*targets.classes(part, student), beta)
        value.sum().backward()
        found.append((value, student.grad))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)
    whole = divergence(logits()[part].log_softmax(-1), teacher[part].log_softmax(-1), beta)
    assert (found[0][0] <= whole).all()  # a lower bound
    nearly = divergence(*most_likely(teacher, 28).classes(part, logits()[part]), beta)
    torch.testing.assert_close(nearly, whole, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_teacher_that_is_certain_leaves_no_rest(beta):
    targets = MostLikely(torch.tensor([[3, 1]]), torch.tensor([[0.75, 0.25]]).log(), torch.tensor([-math.inf]))
    student = torch.zeros(1, 8, requires_grad=True)
    value = divergence(*targets.classes(slice(None), student), beta)
    value.sum().backward()
    teacher = torch.tensor([[0.75, 0.25, 0.0]])
    assert value.item() == pytest.approx(formula(torch.tensor([[1, 1, 6]]) / 8, teacher, beta).item(), rel=1e-6)
    assert student.grad.isfinite().all() and student.grad.any()
