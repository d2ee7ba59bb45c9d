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


@pytest.mark.parametrize("terms", [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}], ids=["plain", "smoothed", "z-loss"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 2e-5), ("bf16", 2e-2)])
def test_fused_and_chunked_losses_equal_all_logits(terms, dtype, tolerance):
    from arctic_hydra.trainer.chunked import TokenLoss
    from arctic_hydra.trainer.head import tap_head
    from arctic_hydra.trainer.loss import LossComputer

    device = torch.device("cuda")
    batch = batch_of(documents([300, 211], [250, 200])).to(device)
    results = {}
    for kind in ("full", "chunked", "liger"):
        torch.manual_seed(0)
        factory = tiny_factory(dtype=dtype, hidden_size=64)
        model = factory.create_model(factory.create_config()).to(device)
        head = None if kind == "full" else tap_head(model, device)
        loss = LossComputer(model, head, TokenLoss(**terms), kind == "liger").loss_sum(batch)
        loss.backward()
        results[kind] = [loss.detach().float(), *(p.grad.float() for p in model.parameters())]
    for kind in ("chunked", "liger"):
        for ours, theirs in zip(results[kind], results["full"], strict=True):
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), kind


@pytest.mark.parametrize("optimizer", ["fused_adam", "muon"])
def test_optimizers_on_the_gpu(tmp_path, optimizer):
    run(f"{SMALL} optimizer={optimizer} trainer.train_iters=10 ranks=1 tracking=[] checkpoint=[]", tmp_path)
    fallen = losses(only_run(tmp_path))
    assert fallen[-1] < fallen[0]


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_other_attention_keeps_documents_apart(attention):
    from arctic_hydra.trainer.head import model_inputs

    torch.manual_seed(0)
    factory = tiny_factory(dtype="bf16", hidden_size=64, attn_implementation=attention)
    if problems := list(factory.check_environment()):
        pytest.skip(problems[0])
    model = factory.create_model(factory.create_config()).cuda().eval()
    a, b = documents([170, 230], [160, 220])
    device = torch.device("cuda")
    with torch.no_grad():
        rows = [
            model(**model_inputs(batch_of([first, b]).to(device))).logits[0, 170:]
            for first in (a, ([(a[0][0] + 1) % 128, *a[0][1:]], a[1]))
        ]
    assert torch.equal(*rows)


def test_fp16_scales_its_loss(tmp_path):
    run(f"{SMALL} model.dtype=fp16 deepspeed=zero2 trainer.train_iters=20 ranks=1 tracking=[] checkpoint=[]", tmp_path)
    row = metrics(only_run(tmp_path))[-2]
    assert math.isfinite(row["loss"])
