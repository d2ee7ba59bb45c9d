"""Liger's kernels against torch's, in Triton's interpreter, in separate processes and on tiny shapes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from arctic_hydra.errors import ModelError
from arctic_hydra.model.liger import LigerModelFactory
from tests.command import environment
from tests.trainer.loop import tiny_factory

LOSSES = """
import torch
from arctic_hydra.trainer.chunked import TokenLoss
from arctic_hydra.trainer.head import tap_head
from arctic_hydra.trainer.loss import LossComputer
from tests.trainer.loop import batch_of, documents, tiny_factory

batch = batch_of(documents([9, 14], [5, 9], vocabulary=64))
for term in (TokenLoss(), TokenLoss(label_smoothing=0.1), TokenLoss(z_loss=1e-2)):
    results = []
    for liger in (True, False):
        torch.manual_seed(0)
        factory = tiny_factory(vocab_size=64, num_hidden_layers=1)
        model = factory.create_model(factory.create_config())
        computer = LossComputer(model, tap_head(model, torch.device("cpu")), term, liger)
        loss = computer.loss_sum(batch)
        (loss * 0.5).backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
print("equal")
"""

CROSS_ENTROPY = """
import torch
from liger_kernel.transformers.functional import liger_cross_entropy

torch.manual_seed(0)
logits, targets = torch.randn(7, 33), torch.randint(33, (7,))
ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
loss = liger_cross_entropy(ours, targets, reduction="sum", label_smoothing=0.1)
loss = loss[0] if isinstance(loss, tuple) else getattr(loss, "loss", loss)
expected = torch.nn.functional.cross_entropy(theirs, targets, reduction="sum", label_smoothing=0.1)
loss.backward(), expected.backward()
torch.testing.assert_close(loss, expected)
torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)
print("equal")
"""

ROPE_AND_LEAKS = """
import torch
from transformers.models.llama import modeling_llama
from arctic_hydra.model.liger import apply_kernels
from arctic_hydra.trainer.head import model_inputs
from tests.trainer.loop import batch_of, documents, tiny_factory

def network():
    torch.manual_seed(0)
    factory = tiny_factory(vocab_size=64, num_hidden_layers=1)
    return factory.create_model(factory.create_config())

def means(model):
    attention = model.model.layers[0].self_attn
    return attention.forward.__globals__["apply_rotary_pos_emb"].__module__.partition(".")[0]

inputs = model_inputs(batch_of(documents([9, 14], [5, 9], vocabulary=64)))
stock, module = network(), dict(vars(modeling_llama))
ours = network()
apply_kernels(ours, rms_norm=False, swiglu=False)
assert (means(ours), means(stock), means(network())) == ("liger_kernel", "transformers", "transformers")
logits, expected = ours(**inputs).logits, stock(**inputs).logits
logits.square().sum().backward(), expected.square().sum().backward()
torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
for (name, p), q in zip(ours.named_parameters(), stock.parameters()):
    torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=name)

every = network()
apply_kernels(every)
assert "Liger" in type(every.model.norm).__name__ + repr(every.model.norm.forward), every.model.norm.forward
assert dict(vars(modeling_llama)) == module, "Liger's patches stayed in the module"
assert torch.equal(network()(**inputs).logits, expected), "a model made later runs other kernels"
print("equal")
"""


@pytest.mark.parametrize(
    "script", [LOSSES, CROSS_ENTROPY, ROPE_AND_LEAKS], ids=["fused loss", "cross-entropy", "rope, no leaks"]
)
def test_kernels_equal_torch_in_the_interpreter(script):
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(TRITON_INTERPRET="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("equal")


def test_an_architecture_without_kernels_is_refused(tmp_path):
    import transformers

    transformers.GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(
        ModelError, match=r"Liger has no kernels for model type 'gpt2'; pass model=hf \(Liger supports .*qwen3"
    ):
        LigerModelFactory(name_or_path=str(tmp_path / "gpt2")).create_config()
    config = tiny_factory().create_config()
    config.save_pretrained(tmp_path / "llama")
    assert LigerModelFactory(name_or_path=str(tmp_path / "llama")).create_config().model_type == "llama"
