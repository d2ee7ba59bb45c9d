"""What is refused before a model is built, or as soon as it is."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_hydra.assembly import run_model
from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.errors import ConfigError, ModelError
from arctic_hydra.optimizer.adamw import AdamWFactory
from tests.composing import built


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused() -> None:
    run = built("tokenizer.add_tokens=[uno]")
    tokenizer = run.tokenizer.create_tokenizer()
    rows = len(tokenizer) - 1  # the model grows by those that were added

    def config(size: int) -> Any:
        return SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=size))

    run_model.check_vocabulary(run, config(rows), tokenizer)
    with pytest.raises(ModelError, match=f"has {rows - 1} embedding rows, but the tokenizer has {rows + 1} tokens"):
        run_model.check_vocabulary(run, config(rows - 1), tokenizer)


def test_a_model_that_is_not_of_transformers_is_told_all_that_it_lacks() -> None:
    from torch import nn

    with pytest.raises(
        ConfigError,
        match="returned a Linear, .* lacks get_input_embeddings, get_output_embeddings, config; .* model=spec",
    ):
        run_model.check_interface(nn.Linear(2, 2))


def test_a_method_that_forgets_to_return_is_named() -> None:
    with pytest.raises(ConfigError, match="optimizer: `create_optimizer` returned None, expected an optimizer; end it"):
        run_model.made(None, AdamWFactory(), "create_optimizer", "an optimizer")
    assert run_model.made(0, AdamWFactory(), "create_optimizer", "an optimizer") == 0


@dataclass(kw_only=True)
class Scaled(ModelConverter):
    """Adds a weight."""

    def convert(self, model: Any) -> Any:
        """Add it."""
        model.scale = torch.nn.Parameter(torch.ones(1))
        return model


@dataclass(kw_only=True)
class Smaller(ModelConverter):
    """Keeps one layer, which an export says."""

    def convert(self, model: Any) -> Any:
        """Remove the others."""
        model.model.layers, model.config.num_hidden_layers = model.model.layers[:1], 1
        return model


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [("", True), ("checkpoint=deepspeed", False), ("checkpoint.hf.verify=false", False), ("task=evaluate", False)],
)
def test_a_converter_whose_weights_an_export_would_lose_is_refused_before_training(
    arguments: str, refused: bool
) -> None:
    run = built(*arguments.split())
    run.converter["scaled"] = Scaled()
    expected = pytest.raises(
        ConfigError,
        match=r"converter: Scaled adds, removes, renames or reshapes weights \(scale\), which .*; pass checkpoint=",
    )
    with expected if refused else contextlib.nullcontext():
        run_model._converted(run, torch.nn.Linear(2, 2))
    run.converter["scaled"] = Smaller()
    model = run.trainer.create_model(run.model, run.trainer.create_config(run.model))
    assert len(run_model._converted(run, model).model.layers) == 1
