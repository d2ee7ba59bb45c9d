"""Options that save memory do not change results: recomputation, offloading, tiling and compilation."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.converter.activation_offload import ActivationOffload
from arctic_hydra.converter.tiled_mlp import TiledMLP
from tests.bench.bench_memory import peak_bytes
from tests.ranks import run_ranks
from tests.trainer.loop import batch_of, documents, full_weights, make_trainer, tiny_factory
from tests.trainer.test_step import DATA, assert_equal

pytestmark = pytest.mark.xdist_group("memory_options")  # share one fixture

CASES = {
    "plain": {},
    "recomputed": {"disable_activation_checkpoint": False},
    "every second": {"disable_activation_checkpoint": False, "activation_checkpoint_every_n_layers": 2},
    "offloaded": {"disable_activation_checkpoint": False, "converters": [ActivationOffload()]},
    "tiled": {"converters": [TiledMLP(tiles=3)]},
    "tiled and recomputed": {"disable_activation_checkpoint": False, "converters": [TiledMLP(tiles=8)]},
    "compiled": {"compile": True, "compile_backend": "aot_eager", "row_tokens": 128},
    "optimizer on the CPU": {"offload": {"offload_optimizer": True}},
    "all on the CPU": {"offload": {"offload_optimizer": True, "offload_parameters": True}},
}


def trained(run_dir, names, stage):
    """Train each case; return its logged rows and final weights."""
    results = []
    for name in names:
        settings = dict(CASES[name])
        passed = {key: settings.pop(key) for key in ("converters", "row_tokens", "offload") if key in settings}
        geometry = {
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 1 if torch.distributed.get_world_size() == 2 else 2,
        }
        trainer = make_trainer(DATA, run_dir, stage=stage, model=tiny_factory(**settings), **passed, **geometry)
        rows = []
        trainer._record = rows.append
        trainer.train()
        results.append((rows, full_weights(trainer)))
    return results


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run_ranks(1, trained, tmp_path_factory.mktemp("reference"), ["plain"], 0)[0][0]


@pytest.mark.parametrize(
    ("ranks", "stage", "without"),
    [
        (1, 0, ("optimizer on the CPU", "all on the CPU")),
        (2, 0, ("optimizer on the CPU", "all on the CPU")),
        (2, 2, ("all on the CPU",)),
        (2, 3, ("compiled",)),
    ],
)
def test_every_option_equals_the_plain_run(reference, tmp_path, ranks, stage, without):
    names = [name for name in CASES if name not in without]
    for results in run_ranks(ranks, trained, tmp_path, names, stage):
        for ours in results:
            assert_equal(ours, reference)


def by_inductor(run_dir):
    """Train the compiled case with inductor, which needs g++ on the CPU."""
    CASES["compiled"]["compile_backend"] = "inductor"
    return trained(run_dir, ["compiled"], 0)[0]


@pytest.mark.extras
def test_inductor_equals_the_plain_run(reference, tmp_path):
    assert_equal(run_ranks(1, by_inductor, tmp_path)[0], reference)


def backward_bytes(_, settings, converters):
    """Return the peak of host tensor bytes of one forward and backward pass over 2,048 tokens, without weights."""
    from arctic_hydra.trainer.loss import LossComputer

    factory = tiny_factory(hidden_size=64, intermediate_size=512, num_hidden_layers=6, **settings)
    batch = batch_of(documents([2048], [4]))
    with peak_bytes() as peak:
        model = factory.create_model(factory.create_config()).train()
        for converter in converters:
            model = converter.convert(model)
        LossComputer(model, None).loss_sum(batch).backward()
    return peak.bytes


def test_recomputing_and_tiling_save_memory(tmp_path):
    def measured(converters=(), **settings):
        return run_ranks(1, backward_bytes, tmp_path, settings, converters)[0]

    everything = measured()
    second = measured(disable_activation_checkpoint=False, activation_checkpoint_every_n_layers=2)
    every = measured(disable_activation_checkpoint=False)
    tiled = measured([TiledMLP()], disable_activation_checkpoint=False)
    assert everything > 1.5 * second > 2 * every
    assert every > 1.5 * tiled
