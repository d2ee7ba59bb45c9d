"""The loss in chunks has the value and the gradients of its formula over full logits, for every head and mix."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from arctic_hydra.trainer.balance import find_balance
from arctic_hydra.trainer.chunked import AS_IS, LogitTransform
from arctic_hydra.trainer.distillation.distillation_loss import Mix, chunked_distillation, distill
from arctic_hydra.trainer.distillation.divergence import WholeLogits
from arctic_hydra.trainer.distillation.teacher import FromHidden
from arctic_hydra.trainer.head import tap_head
from arctic_hydra.trainer.loss import LossComputer
from tests.trainer.distillation.test_divergence import formula
from tests.trainer.test_balance import CASES as BATCHES
from tests.trainer.test_balance import CPU, mixtral

ROWS, WIDTH, VOCABULARY, TEACHER_WIDTH = 11, 8, 31, 12
CASES = {
    "forward": (Mix(), AS_IS, False),
    "reverse, bias": (Mix(beta=1.0), AS_IS, True),
    "symmetric, softcap": (Mix(beta=0.5), LogitTransform(softcap=2.0), False),
    "symmetric, temperature, scale": (Mix(0.5, temperature=3.0), LogitTransform(scale=0.5), False),
    "everything": (Mix(0.3, temperature=0.7, ce_share=0.4), LogitTransform(2.0, 4.0), True),
}
OF_TEACHER = LogitTransform(softcap=5.0)


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    shapes = ((ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    student = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    teacher = [torch.randn(ROWS, TEACHER_WIDTH).to(dtype), torch.randn(VOCABULARY, TEACHER_WIDTH).to(dtype)]
    return student, teacher, torch.randint(VOCABULARY, (ROWS,))


def plain(student, teacher, targets, mix, transform):
    """Return the losses from the formula in fp64, with all logits at once."""

    def logits(of, hidden, weight, bias):
        out = linear(hidden, weight, bias) * of.scale
        return out if of.softcap is None else of.softcap * torch.tanh(out / of.softcap)

    ours, theirs = logits(transform, *student), logits(OF_TEACHER, *teacher, None)
    pair = [(each / mix.temperature).softmax(-1) for each in (ours, theirs)]
    nll = -ours.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return (1 - mix.ce_share) * mix.temperature**2 * formula(*pair, mix.beta) + mix.ce_share * nll


@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula_over_all_logits(case):
    mix, transform, with_bias = CASES[case]
    (hidden, weight, bias), teacher, targets = tensors(torch.float64)
    student = [hidden, weight, bias if with_bias else None]
    expected = plain(student, teacher, targets, mix, transform)
    (2 * expected.sum()).backward()
    grads = [tensor.grad.float() for tensor in student if tensor is not None]
    for chunk_rows in (1, 4, 0):
        (hidden, weight, bias), (theirs, head), targets = tensors()
        arguments = (hidden, weight, bias if with_bias else None, targets)
        teaching = FromHidden(theirs, head, None, OF_TEACHER, mix.temperature)
        loss, figures = chunked_distillation(*arguments, teaching, mix, transform, chunk_rows)
        (2 * loss).backward()  # as the step scales it
        found = [tensor.grad for tensor in (hidden, weight, bias) if tensor.grad is not None]
        torch.testing.assert_close(figures[0], expected.detach().float(), atol=3e-6, rtol=3e-6)
        torch.testing.assert_close(found, grads, atol=1e-5, rtol=1e-5)
        assert loss.item() == pytest.approx(expected.sum().item(), rel=1e-6)
        with torch.no_grad():
            again, evaluated = chunked_distillation(*arguments, teaching, mix, transform, chunk_rows)
            best = linear(hidden, weight, arguments[2]).argmax(-1)
        assert torch.equal(again, loss) and torch.equal(evaluated[:3], figures[:3])
        assert torch.equal(evaluated[3].bool(), best == targets)


def test_the_teacher_is_read_in_chunks_too():
    """No tensor of either pass has the size of all logits."""
    seen = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.extend(x.numel() for x in (result if isinstance(result, tuple) else [result]) if torch.is_tensor(x))
            return result

    hidden, weight = torch.randn(200, WIDTH, requires_grad=True), torch.randn(97, WIDTH, requires_grad=True)
    teaching = FromHidden(torch.randn(200, 4), torch.randn(97, 4), None, AS_IS, 1.0)
    with Sizes():
        loss, _ = chunked_distillation(
            hidden, weight, None, torch.zeros(200, dtype=torch.int64), teaching, Mix(0.5), AS_IS, 5
        )
        loss.backward()
    assert max(seen) == 200 * WIDTH < 200 * 97


def test_frozen_tensors_get_no_gradient_and_no_rows_are_zero_with_a_graph():
    (hidden, weight, bias), (theirs, head), targets = tensors()
    weight.requires_grad_(False)
    teaching = FromHidden(theirs, head, None, AS_IS, 1.0)
    chunked_distillation(hidden, weight, bias, targets, teaching, Mix())[0].backward()
    assert weight.grad is None and hidden.grad is not None and bias.grad is not None
    nothing = FromHidden(theirs[:0], head, None, AS_IS, 1.0)
    loss, figures = chunked_distillation(hidden[:0], weight, bias, targets[:0], nothing, Mix())
    bias.grad = None
    loss.backward()
    assert loss == 0 and figures.shape == (4, 0) and not bias.grad.any()


def test_bf16_weights_get_gradients_summed_in_fp32():
    (hidden, weight, _), (theirs, head), targets = tensors(torch.bfloat16)
    found = []
    for chunk_rows in (1, ROWS):
        weight.grad = None
        teaching = WholeLogits(linear(theirs, head), 1.0)
        loss, _ = chunked_distillation(hidden, weight, None, targets, teaching, Mix(0.5), AS_IS, chunk_rows)
        loss.backward()
        found.append(weight.grad)
    assert loss.dtype == torch.float32 and weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(*found, rtol=2**-8, atol=1e-3)


def test_a_student_with_experts_keeps_its_load_balancing_loss_on_either_way_to_the_logits():
    batch, model, found = BATCHES["packed"], mixtral(), []
    targets = WholeLogits(torch.randn(batch.num_supervised, 96), 2.0)
    balance = find_balance(model, CPU, 1)
    for head in (None, tap_head(model, CPU)):
        computer = LossComputer(model, head, balance=balance)
        ours = distill(computer, batch, targets, Mix(0.5, 2.0, 0.25))
        torch.testing.assert_close(ours.router_loss, computer.losses(batch)[1])
        model.zero_grad()
        ours.loss.backward()
        found.append([ours.loss, ours.divergences_K, ours.nlls_K, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found, atol=2e-6, rtol=2e-5)
