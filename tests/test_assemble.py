"""The parts of a run that its tasks share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_hydra import assemble
from arctic_hydra.config import run_id
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError, ModelError
from tests.command import SMALL, only_run, run
from tests.composing import built
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer, tiny_factory


def test_the_base_of_an_adapter_is_where_transformers_finds_the_weights(tmp_path: Path) -> None:
    assert assemble.adapter_base(built()) == (None, None), "the embedded model is stored nowhere"
    assert assemble.adapter_base(built("model=hf", "model.name_or_path=org/x", "model.revision=r1")) == ("org/x", "r1")
    local = assemble.adapter_base(built("model=hf", f"model.name_or_path={tmp_path}", "model.revision=r1"))
    assert local == (str(tmp_path), None), "a directory has no revisions"


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused() -> None:
    run = built("tokenizer.add_tokens=[uno]")
    tokenizer = run.tokenizer.create_tokenizer()
    rows = len(tokenizer) - 1  # the model grows by those that were added

    def config(size: int) -> Any:
        return SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=size))

    assemble.check_vocabulary(run, config(rows), tokenizer)
    with pytest.raises(ModelError, match=f"has {rows - 1} embedding rows, but the tokenizer has {rows + 1} tokens"):
        assemble.check_vocabulary(run, config(rows - 1), tokenizer)


def test_the_first_rank_records_the_horizon(tmp_path: Path) -> None:
    run = SimpleNamespace(trainer=SimpleNamespace(training_horizon=7))
    for world in (World(rank=1, size=2), World(rank=0, size=2)):
        assert not (tmp_path / "record.json").exists()
        assemble.record_horizon(run, tmp_path, SimpleNamespace(world=world))  # type: ignore[arg-type]
    assert json.loads((tmp_path / "record.json").read_text()) == {"format": 1, "horizon": 7}


def _losses(folder, settings, deterministic):
    """Return the losses with each ZeRO stage and dtype, and whether torch is restricted to deterministic algorithms."""
    if deterministic:
        assemble.use_deterministic_algorithms()
    found = []
    for stage, dtype in settings:
        trainer = make_trainer(documents([12] * 4, [4] * 4), folder, stage=stage, model=tiny_factory(dtype=dtype))
        rows = []
        trainer._record = rows.append
        trainer.train()
        found += [value for row in rows for value in (row["loss"], row["grad_norm"])]
    return found, torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_deterministic_algorithms_train_the_same_at_every_stage(tmp_path):
    """torch then fills uninitialized memory with NaN, which no step may read."""
    settings = [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")]
    usual, strict = (run_ranks(2, _losses, tmp_path, settings, deterministic)[0] for deterministic in (False, True))
    assert usual[1:] == (False, None) and strict[1:] == (True, ":4096:8")
    assert len(strict[0]) == 4 * 2 * 2 and strict[0] == pytest.approx(usual[0], rel=1e-3)


def test_a_run_asks_for_them_by_its_config(tmp_path):
    digests = []
    for name in ("one", "two"):
        run(f"{SMALL} trainer.train_iters=2 tracking=[] deterministic=true name={name}", tmp_path)
        digests.append((only_run(tmp_path, name) / "export" / "model.safetensors").read_bytes())
    assert digests[0] == digests[1]
    assert run_id(built("deterministic=true")) != run_id(built()) == run_id(built("deterministic=false"))


def test_a_model_that_is_not_of_transformers_is_told_all_that_it_lacks() -> None:
    from torch import nn

    with pytest.raises(
        ConfigError,
        match="returned a Linear, .* lacks get_input_embeddings, get_output_embeddings, config; .* model=spec",
    ):
        assemble.check_interface(nn.Linear(2, 2))
