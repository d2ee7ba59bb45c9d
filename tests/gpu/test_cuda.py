"""What only a CUDA device can show; the same code paths run on the CPU in the other tests."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch

from arctic_hydra.component import registered
from tests.command import SMALL, losses, metrics, only_run, run
from tests.trainer.loop import batch_of, documents, tiny_factory

pytestmark = pytest.mark.gpu


CUDA = torch.device("cuda")


def evaluation_losses(run_dir):
    """Return the evaluation losses, over the same examples each: those of two steps differ by their documents."""
    return [row["eval/loss"] for row in metrics(run_dir) if "eval/loss" in row]


# In fp32, which torch's kernel refuses, attention goes document by document.
@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 2e-2), ("fp16", 1e-2), ("fp32", 1e-5)])
def test_packed_attention_equals_documents_alone(dtype, tolerance):
    from arctic_hydra.trainer.loss import LossComputer, supervised_logits

    torch.manual_seed(0)
    factory = tiny_factory(dtype=dtype, hidden_size=64)
    model = factory.create_model(factory.create_config()).to(CUDA)
    a, b = documents([170, 230], [160, 220])
    packed, *alone = (batch_of(some).to(CUDA) for some in ([a, b], [a], [b]))
    with torch.no_grad():
        together = supervised_logits(model, packed)[0]
        apart = torch.cat([supervised_logits(model, batch)[0] for batch in alone])
    torch.testing.assert_close(together, apart, atol=tolerance, rtol=0)
    gradients = []
    for batches in ([packed], alone):
        model.zero_grad()
        for batch in batches:
            LossComputer(model, None).loss_sum(batch).backward()
        gradients.append([p.grad.float() for p in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() <= max(tolerance, 1e-4) * theirs.abs().max()


def test_embedded_default_on_the_gpu(tmp_path):
    """The default is fp32, with documents packed."""
    run(f"{SMALL} trainer.train_iters=20 ranks=1 tracking=[]", tmp_path)
    before, *_, after = evaluation_losses(only_run(tmp_path))
    assert after < before
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

    batch = batch_of(documents([300, 211], [250, 200])).to(CUDA)
    results = {}
    for kind in ("full", "chunked", "liger"):
        torch.manual_seed(0)
        factory = tiny_factory(dtype=dtype, hidden_size=64)
        model = factory.create_model(factory.create_config()).to(CUDA)
        head = None if kind == "full" else tap_head(model, CUDA)
        loss = LossComputer(model, head, TokenLoss(**terms), kind == "liger").loss_sum(batch)
        loss.backward()
        results[kind] = [loss.detach().float(), *(p.grad.float() for p in model.parameters())]
    for kind in ("chunked", "liger"):
        for ours, theirs in zip(results[kind], results["full"], strict=True):
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), kind


@pytest.mark.parametrize("optimizer", ["fused_adam", "muon"])
def test_optimizers_on_the_gpu(tmp_path, optimizer):
    if problems := list(registered("optimizer")["optimizer", optimizer]().check_environment()):
        pytest.skip(problems[0])
    run(f"{SMALL} optimizer={optimizer} trainer.train_iters=20 ranks=1 tracking=[] checkpoint=[]", tmp_path)
    before, *_, after = evaluation_losses(only_run(tmp_path))
    assert after < before


def needs_float8():
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not support float8")


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
@pytest.mark.parametrize("tokens", [1037, 33])
def test_float8_takes_any_number_of_tokens(recipe, tokens):
    needs_float8()
    from arctic_hydra.converter.float8 import Float8Converter
    from arctic_hydra.trainer.loss import LossComputer

    torch.manual_seed(0)
    factory = tiny_factory(dtype="bf16", hidden_size=128, intermediate_size=256)
    plain = factory.create_model(factory.create_config()).to(CUDA)
    rounded = Float8Converter(recipe=recipe).convert(deepcopy(plain))
    batch = batch_of(documents([tokens], [tokens])).to(CUDA)
    for model in (plain, rounded):
        LossComputer(model, None).loss_sum(batch).backward()
    for (name, p), q in zip(rounded.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad - q.grad).float().norm() <= 0.25 * q.grad.float().norm(), name


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_float8_trains_packs_of_any_length(tmp_path, dtype):
    needs_float8()
    more = f"converter=[float8] model.dtype={dtype} trainer.train_iters=20 ranks=1 tracking=[] checkpoint=[]"
    run(f"{SMALL} {more}", tmp_path)
    assert any(row["tokens"] % 16 for row in metrics(only_run(tmp_path)) if "tokens" in row)
    before, *_, after = evaluation_losses(only_run(tmp_path))
    assert after < before


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_other_attention_keeps_documents_apart(attention):
    from arctic_hydra.trainer.head import model_inputs

    torch.manual_seed(0)
    factory = tiny_factory(dtype="bf16", hidden_size=64, attn_implementation=attention)
    if problems := list(factory.check_environment()):
        pytest.skip(problems[0])
    model = factory.create_model(factory.create_config()).cuda().eval()
    a, b = documents([170, 230], [160, 220])
    with torch.no_grad():
        rows = [
            model(**model_inputs(batch_of([first, b]).to(CUDA))).logits[0, 170:]
            for first in (a, ([(a[0][0] + 1) % 128, *a[0][1:]], a[1]))
        ]
    assert torch.equal(*rows)


def test_fp16_scales_its_loss_but_not_the_logged_norm(tmp_path):
    scaling = "'deepspeed.config={fp16:{initial_scale_power:8}}'"  # low enough to skip no step
    norms = {}
    for name, arguments in {
        "fp32": "deepspeed=zero1",
        **{f"fp16-{stage}": f"model.dtype=fp16 deepspeed=zero{stage} {scaling}" for stage in (1, 2, 3)},
    }.items():
        more = "trainer.train_iters=20 ranks=1 tracking=[] checkpoint=[]"
        run(f"{SMALL} name={name} {arguments} {more}", tmp_path)
        rows = metrics(only_run(tmp_path, name))
        norms[name] = [row["grad_norm"] for row in rows if "grad_norm" in row]
        assert len(norms[name]) == 20 and rows[-2]["skipped_steps"] == 0
        before, *_, after = evaluation_losses(only_run(tmp_path, name))
        assert after < before
    assert all(found[:3] == pytest.approx(norms["fp32"][:3], rel=0.05) for found in norms.values())
