"""The memory estimate: close to what a real run holds, and its parts by closed form."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest

from arctic_hydra import memory
from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.report.memory_lines import describe
from arctic_hydra.tasks import check
from tests.bench.bench_memory import case, estimated, measure
from tests.composing import built
from tests.ranks import run_ranks

HALF = {"dtype": "bf16", "disable_activation_checkpoint": False}


SETTINGS = {
    "plain": case(),
    "zero3": case(stage=3, ranks=2, accumulation=2, model=HALF),
    "lora": case(peft="lora", model=HALF),
    "qlora": case(peft="qlora", model=HALF),
    "lora, added tokens": case(peft="lora", model={**HALF, "vocab_size": 4096}, added=2),
    "sliding window": case(window=128, model=HALF),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_estimate_is_within_15_percent_of_a_real_run(tmp_path, name):
    settings = SETTINGS[name]
    expected = estimated(settings, tmp_path).total
    measured = run_ranks(settings["ranks"], measure, tmp_path, settings)[0]
    assert expected == pytest.approx(measured, rel=0.15)


@dataclass(kw_only=True)
class TrainsNorms(ModelConverter):
    """Freezes everything but the norms."""

    def convert(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "norm" in name
        return model


TRACE = memory.ModelPeaks(parameters=1000, trainable=400, other=0, activations=50, head=5)


@pytest.mark.parametrize(
    ("stage", "dtype", "parameters", "optimizer", "gradients"),
    [
        (1, "bf16, summed in fp32", 2000, 12 * 100, (2 + 4) * 400),
        (0, "fp32", 4000, 8 * 400, 4 * 400),
        (0, "bf16", 2000, 12 * 400, 2 * 400),
        (1, "bf16", 2000, 12 * 100, 2 * 400),
        (2, "bf16", 2000, 12 * 100, 2 * 100),
        (3, "bf16", 500 + 2000, 12 * 100, 2 * 100),
    ],
)
def test_what_the_engine_holds_on_each_of_four_ranks(stage, dtype, parameters, optimizer, gradients):
    dtype, _, summed = dtype.partition(", summed in ")
    more = [f"deepspeed.config.data_types={{grad_accum_dtype:{summed}}}"] if summed else []
    chosen = built(f"deepspeed=zero{stage}", f"model.dtype={dtype}", "ranks=4", *more)
    settings = chosen.deepspeed.fill(1, 1, 4, dtype, 64)
    held = memory.engine_bytes(chosen, settings, TRACE, 4)
    assert (held.parameters, held.optimizer, held.gradients) == (parameters, optimizer, gradients)


def test_frozen_parameters_need_no_optimizer_state():
    chosen = built("data.max_length=64")
    whole = memory.estimate(chosen)
    chosen.converter["norms"] = TrainsNorms()
    part = memory.estimate(chosen)
    assert part.trace.parameters == whole.trace.parameters
    assert part.trace.trainable == 9 * 256  # two norms in each of four layers, and the last
    assert part.engine.optimizer == 8 * 9 * 256
    assert part.total < whole.total - 8 * (whole.trace.trainable - part.trace.trainable)


def test_a_copied_reference_takes_memory_and_one_with_stored_scores_only_while_it_computes_them(monkeypatch):
    saved = 1000
    monkeypatch.setattr(memory, "quantized_bytes", lambda run, model: (saved, 0))
    plain = ("trainer=dpo", "data.max_length=256", "data.sources.preference.path=pairs.jsonl")
    found = {
        name: memory.estimate(built(*plain, *more))
        for name, more in {
            "copy": (),
            "cached": ("trainer.reference=cached",),
            "other": ("trainer.reference=cached", "trainer.reference_path=x"),
            "adapter": ("peft=lora",),
            "trained adapter": ("peft=lora", "init_from=x"),
        }.items()
    }
    weights = found["cached"].engine.parameters
    assert found["copy"].trace.other - found["cached"].trace.other == weights - saved
    with_adapter = found["adapter"].engine.parameters
    assert found["trained adapter"].trace.other - found["adapter"].trace.other == with_adapter - saved
    assert found["cached"].scoring == 0 and found["other"].held == found["cached"].held
    assert (
        weights < found["other"].trace.scoring < weights + found["other"].trace.activations + found["other"].trace.head
    )
    assert found["cached"].total <= found["other"].total < found["copy"].total


def test_longer_rows_and_more_supervised_positions_cost_more():
    chosen = built("trainer.head_loss=full")
    short, long = (memory.estimate(chosen, memory.MicroBatchShape(1, tokens, 32)) for tokens in (512, 2048))
    assert long.trace.activations / short.trace.activations > 3.5
    full = memory.estimate(chosen, memory.MicroBatchShape(1, 2048, 2048)).trace.head
    chunked = memory.estimate(built("trainer.head_chunk_rows=64"), memory.MicroBatchShape(1, 2048, 2048)).trace.head
    assert full > 2048 * 4096 * 4  # at least the logits of all supervised positions, in fp32
    assert chunked < full / 4


def levels(offload):
    """Count what eight recomputed layers keep on a device that torch gives to whoever has none: beside the host, as CUDA is.

    No backward pass: torch would start a thread for the device, which a forked process cannot have.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils import backend_registration
    from torch.utils.checkpoint import checkpoint

    from arctic_hydra.converter.activation_offload import _offloaded

    class Device(backend_registration._DummyBackendModule):
        def get_rng_state(self, *_):
            return torch.zeros(8, dtype=torch.uint8)

        def set_rng_state(self, *_):
            """Draws nothing."""

    backend_registration._setup_privateuseone_for_python_backend("npy", Device())
    recomputed = functools.partial(checkpoint, use_reentrant=False)
    with FakeTensorMode(), memory._live_bytes("npy") as live:
        weight = torch.nn.Parameter(torch.empty(16, 16, device="npy"))
        hidden = torch.empty(4096, 16, device="npy", requires_grad=True) * 1
        for _ in range(8):
            layer = lambda x: torch.nn.functional.linear(x, weight).relu()  # noqa: E731
            hidden = _offloaded(recomputed, layer, hidden) if offload else recomputed(layer, hidden)
        return live.here.now, live.elsewhere.now


def test_offloaded_activations_are_the_hosts_where_that_has_a_memory_of_its_own():
    inputs = 4096 * 16 * 4  # what a layer is computed again from
    (kept, nothing), (left, offloaded) = (run_ranks(1, levels, offload)[0] for offload in (False, True))
    assert (nothing, offloaded) == (0, 8 * inputs)
    assert kept - left == 8 * inputs
    trace = memory.ModelPeaks(1000, 400, 0, activations=left, head=0, host=offloaded)
    engine = memory.EngineBytes(0, 0, 0, 0, 0, host=1000)
    assert memory.Estimate(trace, engine, 2, "cuda").host == 2 * (1000 + offloaded)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_experts_are_described_in_every_dtype(dtype):
    """torch describes its grouped product, with which they multiply, in bf16 only."""
    sizes = "model.hidden_size=64 model.intermediate_size=64 model.num_attention_heads=4 model.num_key_value_heads=2"
    shape = f"model=random model.architecture=mixtral {sizes} model.vocab_size=4096 model.num_hidden_layers=2".split()
    chosen = built(*shape, f"model.dtype={dtype}")
    short, long = (
        memory.estimate(chosen, memory.MicroBatchShape(1, tokens, 1)).trace.activations for tokens in (512, 2048)
    )
    assert long > 2 * short > 0


@pytest.mark.parametrize("packing", [True, False])
def test_attention_sees_documents_as_the_run_gives_them(packing, monkeypatch):
    """Bounds choose the kernel on CUDA, which needs no mask for a window."""
    from arctic_hydra.model import attention

    seen = []
    attend = attention._attend_by_document
    monkeypatch.setattr(attention, "_attend_by_document", lambda *given: seen.append(given[-2:]) or attend(*given))
    memory.estimate(built(f"data.packing={packing}", "data.max_length=64"))
    assert seen
    for bounds, longest in seen:
        assert (bounds is not None and tuple(bounds.shape) == (2,) and longest == 64) if packing else bounds is None


@pytest.mark.parametrize("packing", [True, False])
def test_a_loss_of_pairs_of_ones_own_is_measured_too(packing, monkeypatch):
    path = "data.sources.preference.path=pairs.jsonl"
    chosen = built("trainer=dpo", path, f"data.packing={packing}", "data.max_length=64")

    def loss(self, batch):
        losses_K = self._losses.losses(batch)[0]
        sums_D = losses_K.new_zeros(2 * self.units(batch)).index_add(0, batch.document_K, losses_K)
        assert len(sums_D) == 2
        return (sums_D[0::2] - sums_D[1::2]).sum()

    monkeypatch.setattr(type(chosen.trainer), "probed_loss", loss)
    assert memory.estimate(chosen).trace.activations > 0


def test_says_whether_it_fits():
    found = memory.Estimate(TRACE, memory.EngineBytes(2 * memory.GIB, 0, 0, 0, 0), 1, "cuda")
    assert found.lines(4 * memory.GIB)[-1] == "fits: 50% of the 4 GiB of this machine's GPU"
    assert found.lines(2 * memory.GIB)[-1].startswith("DOES NOT FIT: 100% of the 2 GiB")


def test_an_estimate_that_fails_says_nothing_of_the_run(monkeypatch):
    def fail(*_):
        raise RuntimeError("fake tensors cannot do this\nand more")

    monkeypatch.setattr(memory, "measure_model", fail)
    expected = ["memory   not estimated: fake tensors cannot do this"]
    assert check.find(built("data.max_length=64")) == (expected, [])
    assert describe(built("data.max_length=64")).lines == expected


def test_nothing_of_a_check_ends_a_run():
    [line] = describe(built("peft=lora", "peft.target_modules=[qq_proj]")).lines
    assert line.startswith("memory   not estimated: peft.target_modules: 'qq_proj' matches no module")


@pytest.mark.parametrize(
    ("data", "rows", "tokens"),
    [
        ("data=chat", 1, 4 * 256),
        ("data=chat data.packing=false", 4, 256),
        ("data=preference trainer=dpo", 1, 4 * 512),
        ("data=preference trainer=dpo data.packing=false", 8, 256),
        ("data=unpaired trainer=kto", 1, 4 * 512),
        ("data=unpaired trainer=kto data.packing=false", 4, 256),
    ],
)
def test_the_largest_micro_batch_holds_both_sides_of_each_pair(data, rows, tokens):
    kind = data.split()[0].removeprefix("data=")
    source = [] if kind == "chat" else [f"data.sources.{kind}.path=rows.jsonl"]
    chosen = built(*data.split(), *source, "data.max_length=256", "trainer.micro_batch_size=4")
    assert memory.largest_micro_batch(chosen) == memory.MicroBatchShape(rows, tokens, rows * tokens)
    chosen.model.compile = chosen.data.packing
    assert chosen.padded_row_tokens == (tokens if chosen.data.packing else None)


def test_offloaded_state_is_that_of_the_ranks_of_one_machine():
    chosen = built("deepspeed=zero2_offload", "ranks=2", "nnodes=2", "rendezvous=a:1", "data.max_length=64")
    found = memory.estimate(chosen)
    assert found.host == 2 * found.engine.host > 0
