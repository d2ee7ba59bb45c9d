"""Spans of characters and of tokens, and the error if tokens do not decode to their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from arctic_hydra.data.arrays import Array
from arctic_hydra.data.formats.messages import RowProblem
from arctic_hydra.human_numbers import shorten

Span = tuple[int, int]


@dataclass
class Encoded:
    """Token ids of one example and the spans of its supervised tokens."""

    ids: Array
    """int32."""
    spans: list[Span]
    turn_ends: list[int] = field(default_factory=list)
    """The end of each supervised turn; truncation cuts there."""
    thoughts_left_out: int = 0
    """Number of supervised turns whose reasoning the template does not write."""


def pairs(bounds: Sequence[int]) -> list[Span]:
    """Return consecutive bounds as (start, end) pairs."""
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def token_span(encoding: Any, text: str, span: Span) -> Span:
    """Return the span of tokens that covers a span of characters; empty and at the end if no token does."""
    first_char, last_char = span
    count = len(encoding)
    first = encoding.char_to_token(first_char)
    while first is None and first_char + 1 < last_char:  # offsets that are trimmed do not cover spaces
        first_char += 1
        first = encoding.char_to_token(first_char)
    last = encoding.char_to_token(last_char) if last_char < len(text) else count
    if last is None:
        final = encoding.char_to_token(last_char - 1)
        last = count if final is None else final + 1
    return (count if first is None else first, last)


def added_text(before: str, whole: str) -> str:
    """Return what follows `before` in the decoded text `whole`; empty if `whole` does not start with it."""
    return whole[len(before) :] if whole.startswith(before) else ""


def decode_mismatch(expected: str, got: str) -> RowProblem:
    """Return the problem of an answer whose tokens decode to another text."""
    return RowProblem(
        "tokenizer",
        f"the tokens of an answer do not decode to its text: expected {shorten(expected)}, got {shorten(got)}; the tokenizer "
        f"does not preserve text; use one that does",
    )
