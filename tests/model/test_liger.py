"""The fused loss of a Liger model against torch's, in Triton's interpreter: a process of its own, tiny shapes."""

from __future__ import annotations

import subprocess
import sys

from tests.command import environment

SCRIPT = """
import torch
from liger_kernel.transformers import apply_liger_kernel_to_llama
from arctic_hydra.trainer import loss
from tests.trainer.loop import batch_of, documents, tiny_factory

torch.manual_seed(0)
factory = tiny_factory(vocab_size=64, num_hidden_layers=1)
theirs = factory.create_model(factory.create_config())
apply_liger_kernel_to_llama(
    rope=False, rms_norm=False, swiglu=False, cross_entropy=False, fused_linear_cross_entropy=True
)
ours = factory.create_model(factory.create_config())
ours.load_state_dict(theirs.state_dict())
batch = batch_of(documents([9, 14], [5, 9], vocabulary=64))
fused = loss.fused_token_loss_sum(ours.train(), batch)
fused.backward()
logits = theirs(**loss.model_inputs(batch)).logits.flatten(0, 1)[batch.rows_K]
plain = torch.nn.functional.cross_entropy(logits, batch.targets_K, reduction="sum")
plain.backward()
torch.testing.assert_close(fused, plain, atol=1e-4, rtol=0)
for (name, p), q in zip(ours.named_parameters(), theirs.named_parameters()):
    torch.testing.assert_close(p.grad, q[1].grad, atol=1e-5, rtol=0, msg=name)
print("equal", float(fused.detach()))
"""


def test_fused_loss_equals_torch_on_selected_rows():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(TRITON_INTERPRET="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("equal")
