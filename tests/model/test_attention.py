"""Packed documents do not attend to each other."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.errors import ModelError
from arctic_hydra.model.attention import kernel_supports, varlen_attention
from arctic_hydra.trainer.loss import model_inputs, supervised_logits
from tests.trainer.loop import batch_of, documents, tiny_factory

A, B = documents([17, 23], [16, 22], seed=5)


def network(attention, **values):
    torch.manual_seed(0)
    factory = tiny_factory(attn_implementation=attention, **values)
    return factory.create_model(factory.create_config()).eval()


@pytest.mark.parametrize("attention", ["arctic_varlen", "sdpa", "eager", "flex_attention"])
def test_a_pack_equals_its_documents_alone(attention):
    model = network(attention)
    with torch.no_grad():
        packed = supervised_logits(model, batch_of([A, B]))[0]
        alone = torch.cat([supervised_logits(model, batch_of([one]))[0] for one in (A, B)])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["arctic_varlen", "sdpa", "eager", "flex_attention"])
def test_a_changed_token_leaves_the_other_document_bit_equal(attention):
    model = network(attention)
    changed = ([(A[0][0] + 1) % 128, *A[0][1:]], A[1])
    with torch.no_grad():
        before = model(**model_inputs(batch_of([A, B]))).logits[0, len(A[0]) :]
        after = model(**model_inputs(batch_of([changed, B]))).logits[0, len(A[0]) :]
    assert torch.equal(before, after)


def test_padded_rows_equal_documents_alone():
    model = network("arctic_varlen")
    with torch.no_grad():
        padded = supervised_logits(model, batch_of([A, B], packed=False))[0]
        alone = torch.cat([supervised_logits(model, batch_of([one]))[0] for one in (A, B)])
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


def test_gradients_equal_those_of_documents_alone():
    ours, theirs = network("arctic_varlen"), network("sdpa")
    supervised_logits(ours, batch_of([A, B]))[0].square().sum().backward()
    for one in (A, B):
        supervised_logits(theirs, batch_of([one]))[0].square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_activation_checkpointing_changes_nothing():
    ours, theirs = (
        network("arctic_varlen", disable_activation_checkpoint=False).train(),
        network("arctic_varlen").train(),
    )
    assert ours.is_gradient_checkpointing
    for model in (ours, theirs):
        supervised_logits(model, batch_of([A, B]))[0].square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_sliding_window_within_a_document():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 12, 8) for _ in range(3))
    module = torch.nn.Module().eval()
    out, _ = varlen_attention(
        module, q, k, v, None, sliding_window=4, cu_seq_lens_q=torch.tensor([0, 12], dtype=torch.int32)
    )
    tail, _ = varlen_attention(module, q[:, :, 8:], k[:, :, 8:], v[:, :, 8:], None, sliding_window=4)
    torch.testing.assert_close(out[:, 11], tail[:, 3])


@pytest.mark.parametrize(("extra", "text"), [({"softcap": 30.0}, "softcapping"), ({"s_aux": 1}, "sinks")])
def test_an_unsupported_transform_is_refused(extra, text):
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ModelError, match=text):
        varlen_attention(torch.nn.Module(), x, x, x, None, **extra)


@pytest.mark.parametrize(
    ("dtype", "query", "value", "taken"),
    [
        (torch.bfloat16, 128, 128, True),
        (torch.float16, 256, 256, True),
        (torch.float32, 64, 64, False),
        (torch.bfloat16, 512, 512, False),
        (torch.bfloat16, 36, 36, False),
        (torch.bfloat16, 192, 128, False),
    ],
)
def test_inputs_that_the_cuda_kernel_supports(dtype, query, value, taken):
    """Its limits are torch's: half precision, one head size, a multiple of 8 up to 256."""
    q, v = torch.zeros(1, 2, 3, query, dtype=dtype), torch.zeros(1, 2, 3, value, dtype=dtype)
    assert kernel_supports(q, q, v) is taken


def test_documents_stay_isolated_with_values_narrower_than_queries():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 9, 12), torch.randn(1, 2, 9, 12), torch.randn(1, 2, 9, 8)
    module, bounds = torch.nn.Module(), torch.tensor([0, 5, 9], dtype=torch.int32)
    packed, _ = varlen_attention(module, q, k, v, None, cu_seq_lens_q=bounds, max_length_q=5)
    alone, _ = varlen_attention(module, q[:, :, 5:], k[:, :, 5:], v[:, :, 5:], None)
    assert packed.shape == (1, 9, 2, 8) and torch.equal(packed[:, 5:], alone)
