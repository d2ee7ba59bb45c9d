"""The optimizer's fp32 weights: this rank's part, and what publishing them does to the model (whole ones: test_base)."""

from __future__ import annotations

import torch

from arctic_hydra.callback.master_weights import parts, publish
from tests.ranks import run_ranks
from tests.trainer.loop import documents, full_weights, make_trainer, tiny_factory

DATA = documents([12] * 4, [4] * 4)


def _halved(folder):
    found = {}
    fp32_gradients = {"config": {"data_types": {"grad_accum_dtype": "fp32"}}}
    cases = [(stage, dtype, {}) for stage in (0, 1, 2, 3) for dtype in ("fp32", "bf16")]
    for stage, dtype, more in [*cases, (1, "bf16", fp32_gradients)]:
        model = tiny_factory(dtype=dtype)
        trainer = make_trainer(DATA, folder, stage=stage, model=model, train_iters=1, offload=more)
        trainer.train()
        before = full_weights(trainer)
        held = parts(trainer.tools.engine)
        for value in held:
            value.mul_(0.5)
        publish(trainer.tools.engine)
        after = full_weights(trainer)
        half = all(torch.equal(after[name], before[name] / 2) for name in before)
        found[stage, dtype, bool(more)] = half, {value.dtype for value in held}, sum(value.numel() for value in held)
    return found, sum(value.numel() for value in before.values())


def test_every_stage_divides_the_weights_and_publishes_them(tmp_path):
    (first, whole), (second, _) = run_ranks(2, _halved, tmp_path)
    for (stage, *_), (half, dtypes, numbers) in first.items():
        assert half and dtypes == {torch.float32}
        assert numbers == whole if stage == 0 else whole / 2 <= numbers < whole / 2 + 100
    assert first.keys() == second.keys() and all(half for half, *_ in second.values())
