"""The parts of a run that its tasks share."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arctic_hydra import assemble
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError, ModelError
from tests.composing import built


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


def test_a_model_that_is_not_of_transformers_is_told_all_that_it_lacks() -> None:
    from torch import nn

    with pytest.raises(
        ConfigError,
        match="returned a Linear, .* lacks get_input_embeddings, get_output_embeddings, config; .* model=spec",
    ):
        assemble.check_interface(nn.Linear(2, 2))
