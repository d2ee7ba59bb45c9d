"""The memory estimate against what CUDA's allocator reports."""

from __future__ import annotations

import re

import pytest

from tests.command import metrics, only_run, run

pytestmark = pytest.mark.gpu

MODEL = (
    "model.hidden_size=1024 model.intermediate_size=4096 model.num_hidden_layers=8 model.num_attention_heads=16 "
    "model.num_key_value_heads=8 model.vocab_size=32768 model.dtype=bf16 data.mask_inputs=false data.max_length=4096"
)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("recomputed", [True, False])
def test_estimate_is_within_15_percent_of_the_allocator(tmp_path, stage, recomputed):
    kept = "false" if recomputed else "true"
    done = run(
        f"{MODEL} model.disable_activation_checkpoint={kept} deepspeed=zero{stage} ranks=1 trainer.train_iters=4 "
        "tracking=[] checkpoint=[] trainer.eval_at_start=false trainer.eval_at_end=false",
        tmp_path,
    )
    estimated = float(re.search(r"memory   peak ([0-9.]+) GiB of tensors per rank", done.stdout)[1])
    assert estimated == pytest.approx(metrics(only_run(tmp_path))[-1]["memory_gib"], rel=0.15)
