"""An optimizer step gives the same result for every split into micro-batches, ranks, ZeRO stages, packs or padding."""

from __future__ import annotations

import math

import pytest
import torch

from arctic_hydra.errors import ArcticHydraError
from tests.ranks import run_ranks
from tests.trainer.loop import documents, full_weights, make_trainer, tiny_factory

# Deliberately uneven: lengths and supervised counts differ, and one document has no supervised token.
DATA = documents([20, 60, 10, 25, 12, 9, 31, 8], [1, 50, 7, 0, 7, 8, 20, 2])


def history(run_dir, data=DATA, **settings):
    """Train and return the logged metrics and the final weights."""
    trainer = make_trainer(data, run_dir, **settings)
    rows = []
    trainer._record = rows.append
    trainer.train()
    return rows, full_weights(trainer)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return run_ranks(1, _case, folder, {"micro_batch_size": 4})[0]


def assert_equal(ours, theirs, tolerance=1e-6):
    (rows, weights), (expected_rows, expected) = ours, theirs
    for row, other in zip(rows, expected_rows, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=tolerance)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], abs=5 * tolerance)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=20 * tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_accumulation_is_one_batch(reference, tmp_path, packed):
    ours = run_ranks(1, _case, tmp_path, {"micro_batch_size": 1, "gradient_accumulation_steps": 4, "packed": packed})[0]
    assert_equal(ours, reference)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 4), (2, 2)])
def test_ranks_and_stages_are_one_batch(reference, tmp_path, stage, ranks, accumulation):
    settings = {"micro_batch_size": 1, "gradient_accumulation_steps": accumulation, "stage": stage}
    for ours in run_ranks(ranks, _case, tmp_path, settings):
        assert_equal(ours, reference)


def _case(folder, settings):
    return history(folder, **settings)


def gradients(run_dir, settings):
    """Return the gradients of the first step, taken before the optimizer uses them."""
    trainer = make_trainer(DATA, run_dir, clipping=0.0, **settings)
    taken = {}
    step = trainer.tools.engine.step

    def grab():
        if not taken:
            taken.update({name: p.grad.clone() for name, p in trainer.tools.engine.module.named_parameters()})
        step()

    trainer.tools.engine.step = grab
    trainer.train()
    return taken


def test_same_gradients_for_every_cut(tmp_path):
    expected = run_ranks(1, gradients, tmp_path, {"micro_batch_size": 4})[0]
    cut = run_ranks(1, gradients, tmp_path, {"micro_batch_size": 1, "gradient_accumulation_steps": 4})[0]
    spread = run_ranks(2, gradients, tmp_path, {"micro_batch_size": 1, "gradient_accumulation_steps": 2})
    for ours in (cut, *spread):
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0, msg=name)


def _masked(folder):
    masked = documents([9, 9, 9, 9], [0, 0, 0, 0], seed=3)
    data = DATA[:4] + masked + DATA[4:]
    trainer = make_trainer(data, folder, micro_batch_size=1, gradient_accumulation_steps=4)
    before = []
    rows = []
    trainer._record = lambda row: (rows.append(row), before.append(full_weights(trainer)))
    trainer.train()
    return rows, before, trainer.progress.state_dict()


def test_a_step_without_supervised_tokens_moves_nothing(tmp_path):
    rows, weights, progress = run_ranks(1, _masked, tmp_path)[0]
    assert [row["loss"] is None for row in rows] == [False, True, False]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    assert (progress["global_step"], progress["skipped_steps"]) == (3, 1)


def _partial(folder):
    """Ten documents in steps of four: the third step has two, and its gradient is their own mean."""
    data = documents([12] * 10, [3, 4, 5, 6, 7, 8, 9, 10, 2, 11])
    trainer = make_trainer(data, folder, micro_batch_size=1, gradient_accumulation_steps=4)
    rows, losses = [], []
    trainer._record, trainer.probe = rows.append, lambda: None  # which calls `loss` too
    loss = trainer.loss
    trainer.loss = lambda batch: losses.append(loss(batch)) or losses[-1]
    trainer.train()
    return rows, [float(value) for value in losses], trainer.training_horizon


def test_last_partial_window_steps_with_its_own_tokens(tmp_path):
    rows, losses, horizon = run_ranks(1, _partial, tmp_path)[0]
    assert (horizon, len(rows), len(losses)) == (3, 3, 10)
    assert rows[2]["loss"] == pytest.approx((losses[8] + losses[9]) / (2 + 11), rel=1e-6)


def _partial_ranks(folder):
    data = documents([12] * 5, [3, 4, 5, 6, 7])
    return history(folder, data, micro_batch_size=1, gradient_accumulation_steps=2, stage=3)


def _partial_alone(folder):
    data = documents([12] * 5, [3, 4, 5, 6, 7])
    return history(folder, data, micro_batch_size=4)


def test_partial_window_with_an_idle_rank(tmp_path):
    """Five documents over two ranks at ZeRO-3: in the last window one rank has no document but must still join the collectives."""
    expected = run_ranks(1, _partial_alone, tmp_path)[0]
    for ours in run_ranks(2, _partial_ranks, tmp_path):
        assert_equal(ours, expected)


def _non_finite(folder, stage, dtype):
    data = documents([12] * 12, [4] * 12)
    trainer = make_trainer(data, folder, stage=stage, micro_batch_size=4, model=tiny_factory(dtype=dtype))
    rows, weights = [], []
    trainer._record = lambda row: (rows.append(row), weights.append(full_weights(trainer)))
    loss = trainer.loss
    trainer.loss = lambda batch: loss(batch) * (math.inf if trainer.global_step == 1 else 1.0)
    trainer.train()
    return rows, weights, trainer.progress.state_dict()


@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (2, "bf16"), (3, "fp32")])
def test_non_finite_step_is_skipped_and_counted(tmp_path, stage, dtype):
    rows, weights, progress = run_ranks(1, _non_finite, tmp_path, stage, dtype)[0]
    assert not math.isfinite(rows[1]["loss"])
    assert not math.isfinite(rows[1]["grad_norm"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(torch.isfinite(value).all() for value in weights[2].values())
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    assert (progress["global_step"], progress["skipped_steps"], progress["consecutive_skipped_steps"]) == (3, 1, 0)


def _always_non_finite(folder):
    trainer = make_trainer(documents([12] * 12, [4] * 12), folder, micro_batch_size=1, max_consecutive_skipped_steps=3)
    loss = trainer.loss
    trainer.loss = lambda batch: loss(batch) * math.nan
    with pytest.raises(ArcticHydraError, match="3 consecutive steps had non-finite gradients"):
        trainer.train()
    stopped, trainer.loss = trainer.global_step, loss
    trainer.train()
    return stopped, trainer.global_step


def test_non_finite_steps_in_a_row_stop_the_run_which_goes_on_once_they_are_mended(tmp_path):
    assert run_ranks(1, _always_non_finite, tmp_path) == [(3, 12)]


def _first_update(folder, stage):
    """Weight decay and an initial step on zero gradients would change the first update."""
    half = tiny_factory(dtype="bf16")
    trainer = make_trainer(DATA, folder, stage=stage, micro_batch_size=4, model=half, train_iters=1)
    trainer.train()
    return full_weights(trainer)


def test_first_update_is_whole_in_bf16_at_every_stage(tmp_path):
    """DeepSpeed allocates state with a step on zero gradients, which at ZeRO-0 counted as Adam's first step."""
    expected = run_ranks(1, _first_update, tmp_path, 2)[0]
    for stage in (0, 1, 3):
        ours = run_ranks(1, _first_update, tmp_path, stage)[0]
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, atol=1e-3, rtol=0, msg=f"stage {stage}: {name}")


def _rope_dtype(folder):
    trainer = make_trainer(DATA, folder, model=tiny_factory(dtype="bf16"))
    module = trainer.tools.engine.module
    return {name: str(buffer.dtype) for name, buffer in module.named_buffers()}, str(next(module.parameters()).dtype)


def test_rope_frequencies_stay_fp32_in_bf16(tmp_path):
    buffers, weights = run_ranks(1, _rope_dtype, tmp_path)[0]
    assert weights == "torch.bfloat16"
    assert buffers
    assert set(buffers.values()) == {"torch.float32"}


def _evaluated(folder, settings):
    trainer = make_trainer(DATA, folder, eval_data=DATA, **settings)
    return trainer.evaluate()


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, {"micro_batch_size": 3}),
        (1, {"micro_batch_size": 8}),
        (1, {"micro_batch_size": 3, "packed": False}),
        (2, {"micro_batch_size": 1}),
        (2, {"micro_batch_size": 3, "stage": 3}),
    ],
)
def test_evaluation_does_not_depend_on_the_cut(tmp_path, ranks, settings):
    expected = run_ranks(1, _evaluated, tmp_path, {"micro_batch_size": 1})[0]
    for ours in run_ranks(ranks, _evaluated, tmp_path, settings):
        assert ours["eval/loss"] == pytest.approx(expected["eval/loss"], abs=1e-6)
        assert ours["eval/perplexity"] == pytest.approx(math.exp(expected["eval/loss"]), rel=1e-6)
        assert ours["eval/accuracy"] == expected["eval/accuracy"]


def _hurried(folder):
    trainer = make_trainer(DATA, folder, micro_batch_size=1, max_minutes=1e-9)
    trainer.train()
    return trainer.global_step, trainer.stop_reason, trainer.tools.state.stopping


def test_a_time_budget_stops_all_ranks_after_one_step_at_least(tmp_path):
    for outcome in run_ranks(2, _hurried, tmp_path):
        assert outcome == (1, "trainer.max_minutes=1e-09 has elapsed", True)
