"""Token spans of character spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from arctic_hydra.data.arrays import Array

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
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def token_span(encoding: Any, text: str, span: Span, count: int) -> Span:
    """Return the tokens that cover a span of characters; empty at the end where none does."""
    first_char, last_char = span
    first = encoding.char_to_token(first_char)
    while first is None and first_char + 1 < last_char:  # tokenizers that trim offsets leave spaces uncovered
        first_char += 1
        first = encoding.char_to_token(first_char)
    last = encoding.char_to_token(last_char) if last_char < len(text) else count
    if last is None:
        final = encoding.char_to_token(last_char - 1)
        last = count if final is None else final + 1
    return (count if first is None else first, last)
