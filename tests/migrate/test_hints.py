"""What is suggested for a key that does not exist: the same setting, or none."""

from __future__ import annotations

import pytest

from arctic_hydra.component import flatten
from arctic_hydra.migrate.hints import hint
from tests.composing import composed

LISTED = "; {} has "
CASES = [
    ("optimizer.lrr", "; did you mean optimizer.lr?"),
    ("optimzer.eps", "; did you mean optimizer.eps?"),
    ("modle", "; did you mean model?"),
    ("trainer.lr", "; it is optimizer.lr here"),
    ("trainer.packing", "; packing of TRL and LLaMA-Factory is data.packing here"),
    ("optimizer.warmup_ratio", "; warmup_ratio of transformers and Axolotl is scheduler.warmup_ratio here"),
    ("trainer.prefetch_steps", "; did you mean data.prefetch_steps?"),
    ("trainer.max_steps", "; max_steps of transformers and Axolotl is trainer.train_iters here (0, not -1"),
    ("tracking.mlflow.tracking_uri", "; did you mean tracking.mlflow.uri?"),
    ("peft.r", "; it belongs to peft=lora or qlora"),
    ("optimizer.momentum", "; it belongs to optimizer=muon"),
    (
        "data.sources.mine.path",
        "; data.sources has no entry mine, only chat; add it with +source@data.sources.mine=<option>",
    ),
    ("data.eval_sources.a.split", "; data.eval_sources has no entry a"),
    ("data.sources.chat.name_or_path", "; name_or_path of ArcticTraining is data.sources.chat.path here"),
    ("data.column", "; column of ArcticTraining is data.column with data=text here"),
    ("deepspeed.zero_optimization.stage", "; zero_optimization of DeepSpeed belongs in deepspeed.config"),
    ("deepspeed.stge", "; did you mean deepspeed.stage?"),
    ("tokenizer.api_key", LISTED.format("tokenizer") + "add_special_tokens"),
    ("optimizer.max_minutes_of_all", LISTED.format("optimizer") + "betas"),
    ("foo", LISTED.format("the root") + "checkpoint"),
]


@pytest.fixture(scope="module")
def known() -> list[str]:
    return sorted(flatten(composed()))


@pytest.mark.parametrize(("key", "text"), CASES)
def test_only_the_same_setting_is_suggested(key: str, text: str, known: list[str]) -> None:
    assert hint(key, known).startswith(text)
