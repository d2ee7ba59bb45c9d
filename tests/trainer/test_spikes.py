"""The loss-spike guard: a step with a loss far above recent ones is skipped and counted, at every ZeRO stage."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.trainer.spikes import describe_spike
from tests.ranks import run_ranks
from tests.trainer.loop import documents, full_weights, make_trainer, tiny_factory


def test_nothing_is_a_spike_before_the_window_is_full():
    assert describe_spike(100.0, [1.0] * 7, 8, 3.0) == ""
    assert "loss 100 is a spike (mean 1, deviation 0 over 8 steps)" in describe_spike(100.0, [1.0] * 8, 8, 3.0)
    assert describe_spike(1.4, [0.5, 1.5] * 4, 8, 1.0) == ""


def _spiked(folder, stage, count, dtype, empty_last=False):
    supervised = [4, 0] * (count // 2) if empty_last else [4] * count
    trainer = make_trainer(
        documents([12] * count, supervised), folder, stage=stage, micro_batch_size=1, gradient_accumulation_steps=2,
        spike_sigmas=6, spike_window_steps=8, model=tiny_factory(dtype=dtype),
    )  # fmt: skip
    rows, weights = [], []
    trainer._record = lambda row: (rows.append(row), weights.append(full_weights(trainer)))
    loss = trainer.loss
    trainer.loss = lambda batch: loss(batch) * (50.0 if trainer.global_step == 9 else 1.0)
    trainer.train()
    return rows, weights, trainer.progress.state_dict(), trainer.tools.state.recent_losses


@pytest.mark.parametrize(
    ("stage", "ranks", "dtype", "empty_last"), [(0, 1, "bf16", False), (2, 1, "fp32", True), (3, 2, "bf16", False)]
)
def test_a_spike_is_skipped_counted_and_kept_out_of_the_window(tmp_path, stage, ranks, dtype, empty_last):
    for rows, weights, progress, recent in run_ranks(ranks, _spiked, tmp_path, stage, 24 * ranks, dtype, empty_last):
        assert all(torch.equal(weights[8][name], weights[9][name]) for name in weights[0])
        assert any(not torch.equal(weights[9][name], weights[10][name]) for name in weights[0])
        assert (progress["spiked_steps"], progress["skipped_steps"], progress["global_step"]) == (1, 1, 12)
        assert rows[9]["loss"] > 100 and rows[9]["spiked_steps"] == 1
        assert len(recent) == 8 and max(recent) < 10
