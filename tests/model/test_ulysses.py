"""Ranks that share sequences compute what one rank computes alone: packed and padded, at every ZeRO stage."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra import config, distributed
from arctic_hydra.data.load.sequence_parallel import shard_batch
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.ulysses import check_heads, share_positions
from arctic_hydra.trainer.loss import supervised_logits
from tests.command import SMALL, metrics, only_run, run
from tests.ranks import run_ranks
from tests.trainer.loop import batch_of, documents, full_weights, make_trainer, tiny_factory
from tests.trainer.test_step import DATA, assert_equal

pytestmark = pytest.mark.xdist_group("ulysses")  # share one fixture


def trained(run_dir, cases):
    """Train each case; return its logged rows, evaluations included, and its final weights."""
    results = []
    for settings in cases:
        settings = dict(settings)
        kv_heads = settings.pop("kv_heads", 2)
        model = tiny_factory(num_key_value_heads=kv_heads, disable_activation_checkpoint=False)
        trainer = make_trainer(DATA, run_dir, model=model, eval_data=DATA[:5], **settings)
        rows = []
        trainer._record = rows.append
        trainer.train()
        results.append((rows, full_weights(trainer)))
    return results


KINDS = {"packed": {}, "padded": {"packed": False}, "one kv head": {"kv_heads": 1}}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    cases = [{"micro_batch_size": 4, **kind} for kind in KINDS.values()]
    return dict(zip(KINDS, run_ranks(1, trained, folder, cases)[0], strict=True))


def check(ours, expected):
    (rows, weights), (expected_rows, expected_weights) = ours, expected
    steps, expected_steps = ([row for row in each if "loss" in row] for each in (rows, expected_rows))
    assert_equal((steps, weights), (expected_steps, expected_weights))
    for row, other in zip(steps, expected_steps, strict=True):
        assert (row["tokens"], row["supervised_tokens"]) == (other["tokens"], other["supervised_tokens"])
    evaluations = [[row["eval/loss"] for row in each if "eval/loss" in row] for each in (rows, expected_rows)]
    assert evaluations[0] == pytest.approx(evaluations[1], abs=1e-6)


def test_two_ranks_on_each_sequence_equal_one(reference, tmp_path):
    cases = [("packed", 0), ("packed", 2), ("packed", 3), ("padded", 0), ("one kv head", 0)]
    shared = {"micro_batch_size": 4, "sequence_parallel_size": 2}
    for results in run_ranks(
        2, trained, tmp_path, [{**shared, **KINDS[kind], "stage": stage} for kind, stage in cases]
    ):
        for (kind, _), ours in zip(cases, results, strict=True):
            check(ours, reference[kind])


@pytest.mark.slow
def test_two_groups_of_two_ranks_equal_one_rank(reference, tmp_path):
    shared = {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "sequence_parallel_size": 2, "stage": 3}
    for results in run_ranks(4, trained, tmp_path, [shared]):
        check(results[0], reference["packed"])


def isolated(_):
    """Return this rank's logits of document B, packed with two versions of document A."""
    world = World.from_env()
    distributed.start_sequence_groups(world, 2, 60)
    torch.manual_seed(0)
    factory = tiny_factory()
    model = factory.create_model(factory.create_config()).eval()
    a, other_a, b = (documents([30], [29], seed=seed)[0] for seed in (1, 2, 3))
    seen = []
    for first in (a, other_a):
        batch = shard_batch(batch_of([first, b]), world.rank, 2)
        with torch.no_grad():
            logits = supervised_logits(model, batch)[0]
        positions = batch.rows_K + world.rank * batch.input_ids_BT.shape[1]
        seen.append((logits[positions < 30], logits[positions >= 30]))
    return seen


def test_packed_documents_stay_isolated_across_ranks(tmp_path):
    first, second = run_ranks(2, isolated, tmp_path)
    assert not torch.equal(first[0][0], first[1][0])  # document A did change
    assert sum(len(rank[0][1]) for rank in (first, second)) == 29
    for rank in (first, second):
        assert torch.equal(rank[0][1], rank[1][1])


def rotated(_, kind):
    """Return the logits of this rank's part of one document, longer than the original maximum position."""
    world = World.from_env()
    distributed.start_sequence_groups(world, world.size, 60)
    scaled = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}
    scaled |= {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4} if kind == "longrope" else {}
    torch.manual_seed(0)
    factory = tiny_factory(max_position_embeddings=24, hf_config_kwargs={"rope_parameters": scaled, "head_dim": 8})
    model = factory.create_model(factory.create_config()).eval()
    for parameter in model.parameters():  # large enough that attention looks at something
        parameter.data *= 8 if parameter.ndim > 1 else 1
    share_positions(model)
    with torch.no_grad():
        return supervised_logits(model, shard_batch(batch_of(documents([40], [39])), world.rank, world.size))[0]


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rope_scaling_uses_the_longest_position_of_the_whole_sequence(tmp_path, kind):
    whole = run_ranks(1, rotated, tmp_path / "one", kind)[0]
    torch.testing.assert_close(torch.cat(run_ranks(2, rotated, tmp_path / "two", kind)), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_the_parts_join_to_the_whole_batch(packed, size):
    whole = batch_of(documents([20, 9, 12], [7, 9, 1]), packed)
    parts = [shard_batch(whole, rank, size) for rank in range(size)]
    assert len({one.input_ids_BT.shape for one in parts}) == 1
    assert sum(one.num_tokens for one in parts) == whole.num_tokens == 41
    padding = parts[0].input_ids_BT.numel() * size - 41
    assert sum(one.num_padding for one in parts) == padding
    length = whole.input_ids_BT.shape[1]
    joined = torch.cat([one.input_ids_BT for one in parts], dim=1)[:, :length]
    assert torch.equal(joined, whole.input_ids_BT)
    width = parts[0].input_ids_BT.shape[1]
    found = []
    for rank, one in enumerate(parts):
        row, column = one.rows_K // width, one.rows_K % width + rank * width
        found += list(zip((row * length + column).tolist(), one.targets_K.tolist(), strict=True))
    assert sorted(found) == sorted(zip(whole.rows_K.tolist(), whole.targets_K.tolist(), strict=True))
    if packed:
        assert int(parts[0].cu_seqlens[-1]) == width * size


def test_an_empty_batch_is_split_too():
    dummy = batch_of([])
    dummy.num_tokens = 0
    for one in (shard_batch(dummy, 0, 2), shard_batch(dummy, 1, 2)):
        assert one.input_ids_BT.shape == (1, 1)
        assert (one.num_tokens, one.num_padding, one.num_supervised) == (0, 1, 0)


@pytest.mark.parametrize(
    ("heads", "shared", "size", "message"),
    [
        (
            4,
            2,
            3,
            "trainer.sequence_parallel_size: got 3, but the model has 4 attention heads; expected a divisor of 4",
        ),
        (12, 4, 6, "got 6, but the model has 4 key-value heads; expected a divisor or a multiple of 4"),
        (4, 2, 4, ""),
    ],
)
def test_heads_that_cannot_be_distributed_are_refused(heads, shared, size, message):
    described = tiny_factory(hidden_size=48, num_attention_heads=heads, num_key_value_heads=shared).create_config()
    if not message:
        check_heads(described, size)
        return
    with pytest.raises(ConfigError, match=message):
        check_heads(described, size)


def test_a_model_without_heads_is_refused_if_ranks_share_sequences():
    described = RandomModelFactory(architecture="mamba", hidden_size=32, num_hidden_layers=1).create_config()
    check_heads(described, 1)
    with pytest.raises(ConfigError, match="sequence_parallel_size: got 2, but a mamba model has no attention heads"):
        check_heads(described, 2)


def test_the_global_batch_counts_groups_of_ranks():
    from tests.composing import built

    shared = built("ranks=4", "trainer.sequence_parallel_size=2")
    assert config.identity(shared)["global_batch_size"] == 2
    assert config.run_id(shared) == config.run_id(built("ranks=2"))


@pytest.mark.slow
def test_a_shared_run_resumes_on_other_groups_and_equals_one_rank(tmp_path):
    """Global batch 2 throughout: two separate ranks, then both on each sequence."""
    more = (
        f"{SMALL} trainer.train_iters=4 tracking=[] data.packing=true trainer.eval_frequency=2 checkpoint=[deepspeed]"
    )
    run(f"{more} name=alone ranks=1 trainer.gradient_accumulation_steps=2", tmp_path)
    run(f"{more} name=shared ranks=2 trainer.exit_iteration=2", tmp_path, code=75)
    resumed = run(
        f"{more} name=shared ranks=2 trainer.sequence_parallel_size=2 trainer.gradient_accumulation_steps=2", tmp_path
    )
    assert "resumed  from step-00000002" in resumed.stdout
    ours, alone = (metrics(only_run(tmp_path, name)) for name in ("shared", "alone"))
    for key in ("loss", "eval/loss", "tokens", "supervised_tokens"):
        found, expected = ([row[key] for row in rows if key in row] for rows in (ours, alone))
        assert found == pytest.approx(expected, rel=1e-5), key
