"""Spans of characters as spans of tokens, and what an error shows of a text."""

from __future__ import annotations

import pytest

from arctic_hydra.data.encode.spans import added_text, decode_mismatch, pairs, token_span
from tests.data.encode.backends import BACKENDS


def test_pairs_are_spans_of_alternate_bounds() -> None:
    assert pairs([0, 2, 5, 9]) == [(0, 2), (5, 9)] and pairs([]) == []


@pytest.mark.parametrize("span", [(0, 5), (5, 11), (11, 12), (12, 12), (0, 12)])
def test_a_span_at_token_borders_decodes_to_its_text(span: tuple[int, int]) -> None:
    backend, text = BACKENDS["bundled"], "hello world."
    encoding = backend.encode(text, add_special_tokens=False)
    first, last = token_span(encoding, text, span)
    assert backend.decode(encoding.ids[first:last], skip_special_tokens=False) == text[slice(*span)]


def test_added_text_is_empty_when_later_tokens_change_the_beginning() -> None:
    assert added_text("a b", "a b c") == " c"
    assert added_text("a \ufffd", "a é") == ""


def test_the_error_of_a_lost_text_shortens_both_texts() -> None:
    problem = decode_mismatch("a" * 79, "b" * 79)
    assert problem.reason == "tokenizer"
    assert f"expected '{'a' * 56}...{'a' * 19}', got '{'b' * 56}...{'b' * 19}'" in str(problem)
