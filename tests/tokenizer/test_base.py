"""Tokens added to a tokenizer."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.errors import ConfigError
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"add_tokens": ["a", "a"]}, r"add_tokens: got \['a', 'a'\], expected distinct"),
        (
            {"add_tokens": ["a"], "add_special_tokens": ["a"]},
            r"add_special_tokens: got \['a'\], .*none of them in add_tok",
        ),
        ({"add_special_tokens": [""]}, r"^add_special_tokens: got \[''\], expected distinct, non-empty tokens$"),
        ({"pad_vocab_to_multiple_of": 0}, "pad_vocab_to_multiple_of: got 0, expected 1 to 1,000,000"),
    ],
)
def test_malformed_fields_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BundledTokenizerFactory(**fields)


def test_a_token_that_the_vocabulary_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokenizer.add_tokens: 'the' is already in the vocabulary"):
        BundledTokenizerFactory(add_tokens=["the"]).create_tokenizer()


def test_added_tokens_follow_the_vocabulary_in_order() -> None:
    factory = BundledTokenizerFactory(add_tokens=["uno"], add_special_tokens=["<|dos|>"])
    tokenizer = factory.create_tokenizer()
    assert factory.added_ids(tokenizer) == [4096, 4097]
    assert tokenizer("uno<|dos|>")["input_ids"] == [4096, 4097]
    assert tokenizer.decode([4096, 4097], skip_special_tokens=True) == "uno"
