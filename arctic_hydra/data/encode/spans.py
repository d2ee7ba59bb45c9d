"""Spans of characters as spans of tokens, and whether the tokens decode to the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from arctic_hydra.data.arrays import Array
from arctic_hydra.data.formats.messages import RowProblem

Span = tuple[int, int]


@dataclass
class Encoded:
    """Token ids of one example, and the token spans that are trained on."""

    ids: Array
    """int32."""
    spans: list[Span]
    turn_ends: list[int] = field(default_factory=list)
    """Where a trained turn is over: the places to cut at."""
    thoughts_left_out: int = 0
    """Trained turns whose thoughts the template does not write."""


def pairs(bounds: Sequence[int]) -> list[Span]:
    """Return the spans between the first and the second bound, the third and the fourth, and so on."""
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def token_span(encoding: Any, text: str, span: Span) -> Span:
    """Return the tokens of a text's encoding that cover a span of its characters; empty at the end if no token does."""
    first_char, last_char = span
    count = len(encoding)
    first = encoding.char_to_token(first_char)
    while first is None and first_char + 1 < last_char:  # tokenizers that trim offsets leave spaces uncovered
        first_char += 1
        first = encoding.char_to_token(first_char)
    last = encoding.char_to_token(last_char) if last_char < len(text) else count
    if last is None:
        final = encoding.char_to_token(last_char - 1)
        last = count if final is None else final + 1
    return (count if first is None else first, last)


def added_text(before: str, whole: str) -> str:
    """Return what follows `before` in the decoded text `whole`; empty if later tokens change how it begins."""
    return whole[len(before) :] if whole.startswith(before) else ""


def decode_mismatch(expected: str, got: str) -> RowProblem:
    """Return the problem of an answer that its tokens do not decode to."""
    return RowProblem(
        "tokenizer",
        f"the tokens of an answer do not decode to its text: expected {shorten(expected)}, got {shorten(got)}; the tokenizer "
        f"loses text; use one that does not",
    )


def shorten(text: str) -> str:
    """Return a text for an error: quoted, and without its middle where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}")
