"""What only a CUDA device can show; the same code paths run on the CPU in the other tests."""

from __future__ import annotations

import math

import pytest
import torch

from tests.command import SMALL, losses, metrics, only_run, run
from tests.trainer.loop import batch_of, documents, tiny_factory

pytestmark = pytest.mark.gpu


def test_varlen_kernel_equals_documents_alone():
    from arctic_hydra.trainer.loss import supervised_logits

    torch.manual_seed(0)
    factory = tiny_factory(dtype="bf16", hidden_size=64)
    model = factory.create_model(factory.create_config()).cuda().eval()
    a, b = documents([170, 230], [160, 220])
    device = torch.device("cuda")
    with torch.no_grad():
        packed = supervised_logits(model, batch_of([a, b]).to(device))[0]
        alone = torch.cat([supervised_logits(model, batch_of([one]).to(device))[0] for one in (a, b)])
    torch.testing.assert_close(packed, alone, atol=2e-2, rtol=0)


def test_embedded_default_on_the_gpu(tmp_path):
    run(f"{SMALL} trainer.train_iters=10 ranks=1 tracking=[]", tmp_path)
    fallen = losses(only_run(tmp_path))
    assert fallen[-1] < fallen[0]
    assert metrics(only_run(tmp_path))[1]["memory_gib"] > 0


def test_liger_model_equals_torch_kernels(tmp_path):
    run(f"{SMALL} trainer.train_iters=2 ranks=1 tracking=[] name=base", tmp_path)
    export = only_run(tmp_path, "base") / "export"
    for model in ("hf", "liger"):
        run(
            f"name={model} model={model} model.name_or_path={export} model.dtype=fp32 ranks=1 tracking=[] checkpoint=[] "
            "data.max_length=256 trainer.train_iters=10 trainer.eval_at_start=false trainer.eval_at_end=false",
            tmp_path,
        )
    hf, liger = (losses(only_run(tmp_path, name)) for name in ("hf", "liger"))
    assert all(math.isclose(a, b, abs_tol=2e-3) for a, b in zip(hf, liger, strict=True))


def test_fp16_scales_its_loss(tmp_path):
    run(f"{SMALL} model.dtype=fp16 deepspeed=zero2 trainer.train_iters=20 ranks=1 tracking=[] checkpoint=[]", tmp_path)
    row = metrics(only_run(tmp_path))[-2]
    assert math.isfinite(row["loss"])
