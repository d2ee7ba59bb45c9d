"""The chunked loss has the same values and gradients as a loss over full logits, for every term and transform."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from arctic_hydra.trainer.chunked import (
    AS_IS,
    PLAIN,
    LogitTransform,
    TokenLoss,
    chunked_evaluation,
    chunked_losses,
    default_chunk_rows,
)
from arctic_hydra.trainer.loss import plain_losses

ROWS, WIDTH, VOCABULARY = 23, 16, 71
CASES = {
    "plain": (AS_IS, PLAIN, False),
    "bias": (AS_IS, PLAIN, True),
    "scale": (LogitTransform(scale=0.0625), PLAIN, False),
    "softcap": (LogitTransform(softcap=2.0), PLAIN, False),
    "scale, softcap, bias": (LogitTransform(3.0, 5.0), PLAIN, True),
    "label smoothing": (AS_IS, TokenLoss(label_smoothing=0.1), True),
    "z-loss": (AS_IS, TokenLoss(z_loss=1e-2), False),
    "everything": (LogitTransform(2.0, 4.0), TokenLoss(0.1, 1e-2), True),
}


def inputs(dtype=torch.float32, rows=ROWS):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(rows, WIDTH), torch.randn(VOCABULARY, WIDTH), torch.randn(VOCABULARY)
    tensors = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)]
    return tensors, torch.randint(VOCABULARY, (rows,)), torch.rand(rows)


def reference(hidden, weight, bias, targets, transform, loss):
    logits = torch.nn.functional.linear(hidden, weight, bias) * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return plain_losses(logits, targets, loss)


@pytest.mark.parametrize("chunk_rows", [5, 0])
@pytest.mark.parametrize("case", ["plain", "scale, softcap, bias"])
def test_mean_logits_are_those_of_all_logits_at_once(case, chunk_rows):
    transform, loss, _ = CASES[case]
    (hidden, weight, bias), targets, _ = inputs()
    found = torch.full((ROWS,), torch.nan)
    losses = chunked_losses(hidden, weight, bias, targets, transform, loss, chunk_rows, found)
    logits = transform(torch.nn.functional.linear(hidden, weight, bias).detach())
    torch.testing.assert_close(found, logits.mean(-1), atol=1e-6, rtol=1e-6)
    assert losses.requires_grad and not found.requires_grad


@pytest.mark.parametrize("chunk_rows", [1, 5, 0])
@pytest.mark.parametrize("case", CASES)
def test_equals_all_logits_at_once(case, chunk_rows):
    transform, loss, with_bias = CASES[case]
    results = []
    for function in (lambda *a: chunked_losses(*a, chunk_rows), reference):
        (hidden, weight, bias), targets, weights = inputs()
        losses = function(hidden, weight, bias if with_bias else None, targets, transform, loss)
        (losses * weights).sum().backward()  # a different weight for every row, as in preference losses
        results.append([losses, hidden.grad, weight.grad, *([bias.grad] if with_bias else [])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_derivative(case):
    transform, loss, with_bias = CASES[case]
    (hidden, weight, bias), targets, _ = inputs(torch.float64, rows=5)
    arguments = (hidden, weight, bias if with_bias else None, targets, transform, loss, 2)
    assert torch.autograd.gradcheck(chunked_losses, arguments)


def test_weight_gradients_add_up_in_fp32():
    """With bf16 weights and chunks of one row, the gradient equals the fp64 sum rounded once."""
    (hidden, weight, _), targets, _ = inputs(torch.bfloat16, rows=512)
    chunked_losses(hidden, weight, None, targets, chunk_rows=1).sum().backward()
    exact = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    chunked_losses(*exact, None, targets).sum().backward()
    assert weight.grad.dtype == torch.bfloat16
    error = (weight.grad.double() - exact[1].grad).abs().max() / exact[1].grad.abs().max()
    assert error < 4e-3


def test_frozen_weight_gets_no_gradient():
    (hidden, weight, _), targets, _ = inputs()
    weight.requires_grad_(False)
    chunked_losses(hidden, weight, None, targets).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_no_rows_give_zero_with_a_graph():
    (hidden, weight, _), targets, _ = inputs()
    loss = chunked_losses(hidden[:0], weight, None, targets[:0]).sum()
    loss.backward()
    assert loss == 0
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("chunk_rows", [1, 5, 0])
def test_evaluation(chunk_rows):
    (hidden, weight, bias), targets, _ = inputs()
    transform = LogitTransform(2.0, 4.0)
    with torch.no_grad():
        losses, correct = chunked_evaluation(hidden, weight, bias, targets, transform, chunk_rows)
        expected = reference(hidden, weight, bias, targets, transform, PLAIN)
        best = torch.nn.functional.linear(hidden, weight, bias).argmax(-1)
    torch.testing.assert_close(losses, expected, atol=2e-6, rtol=1e-6)
    assert torch.equal(correct.bool(), best == targets)


def test_all_logits_never_exist_at_once():
    """The largest tensor of both passes is the gradient of the hidden states, far smaller than rows times vocabulary."""
    seen = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.extend(x.numel() for x in (result if isinstance(result, tuple) else [result]) if torch.is_tensor(x))
            return result

    (hidden, weight, _), targets, _ = inputs(rows=200)
    with Sizes():
        chunked_losses(hidden, weight, None, targets, chunk_rows=10).sum().backward()
    assert max(seen) == 200 * WIDTH < 200 * VOCABULARY


def test_default_chunk_rows():
    assert default_chunk_rows(4096) == 4096
    assert default_chunk_rows(151_936) == 110
    assert default_chunk_rows(10**9) == 16


def test_both_passes_compute_the_same_logits_under_autocast():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32) * 3, torch.randn(50, 32).requires_grad_()
    bias, targets = torch.zeros(50, requires_grad=True), torch.randint(50, (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = chunked_losses(hidden, weight, bias, targets, chunk_rows=16)
        expected = cross_entropy(linear(hidden, weight, bias), targets, reduction="none")
    assert torch.allclose(losses, expected, atol=1e-5)
    [of_weight, of_bias] = torch.autograd.grad(losses.sum(), [weight, bias])
    [expected_weight, expected_bias] = torch.autograd.grad(expected.sum(), [weight, bias])
    assert of_weight.dtype == of_bias.dtype == torch.float32
    assert (of_bias - expected_bias).abs().max() < 4e-3 * expected_bias.abs().max()
    assert (of_weight - expected_weight).norm() < 4e-3 * expected_weight.norm()
