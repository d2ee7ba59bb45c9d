"""Freezing a part of the model."""

from __future__ import annotations

import pytest

from arctic_hydra.converter.freeze import FreezeConverter
from arctic_hydra.errors import ConfigError
from tests.trainer.loop import tiny_factory


@pytest.mark.parametrize(("fields", "given"), [({}, "neither"), ({"patterns": ["a"], "trainable": ["b"]}, "both")])
def test_exactly_one_of_patterns_and_trainable_is_given(fields, given):
    with pytest.raises(ValueError, match=f"patterns: got {given} of patterns and trainable"):
        FreezeConverter(**fields)


def network():
    factory = tiny_factory(tie_word_embeddings=True)
    return factory.create_model(factory.create_config())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"patterns": ["embed_tokes"]},
            "converter.freeze.patterns: 'embed_tokes' matches no parameter; did you mean 'embed_tokens'",
        ),
        (
            {"patterns": ["model", "lm_head"]},
            "converter.freeze.patterns: .* freezes the whole model; expected patterns that leave",
        ),
    ],
)
def test_patterns_that_match_nothing_or_everything_are_refused(fields, text):
    with pytest.raises(ConfigError, match=text):
        FreezeConverter(**fields).convert(network())


def test_a_tied_weight_is_chosen_by_either_name():
    model = FreezeConverter(trainable=["lm_head"]).convert(network())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["model.embed_tokens.weight"]
