"""Exact match of what a regular expression extracts from generated and from reference answers, such as GSM8K's `#### (.+)`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from arctic_hydra.human_numbers import integer, shorten
from arctic_hydra.patterns import PATTERN_ERRORS, time_limit

OPEN_REASONING = "<think>"
"""The tag that opens the reasoning of an answer, in the answer itself or at the end of its prompt."""
_END_OF_REASONING = "</think>"
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d{3})")


@dataclass(kw_only=True)
class ExactMatch:
    """Settings of the exact match that `task=evaluate` reports besides the loss."""

    pattern: str | None = None
    """For task=evaluate: regular expression that extracts the result from a reference answer and from a generated one, as its first
    group or as a whole, such as `#### (.+)`; unset: nothing is generated."""
    rows: Any = integer(200, minimum=1, maximum=10**9)
    """Rows of each evaluation source whose questions are answered, evenly spaced; all if there are fewer."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the pattern."""
        if self.pattern is None:
            return
        try:
            found = re.compile(self.pattern)
        except PATTERN_ERRORS as error:
            yield (
                f"exact_match.pattern: got {shorten(self.pattern)}, not a valid regular expression ({error}); expected one such as "
                "'#### (.+)'"
            )
            return
        if not self.pattern:
            yield "exact_match.pattern: got an empty pattern, which finds no result; expected one such as '#### (.+)'"
        if found.groups > 1:
            yield (
                f"exact_match.pattern: got {self.pattern!r} with {found.groups} groups, expected at most one, which holds the result; "
                "write the others as (?:...)"
            )

    def result(self, answer: str, in_reasoning: bool = False) -> str | None:
        """Return what the pattern finds last in an answer, after its reasoning; None if it finds nothing but empty matches.

        Commas within numbers are removed, and white space is reduced to single spaces. An answer that ends within its reasoning
        has no result; `in_reasoning`: it begins there, because the prompt opened it. Raises ConfigError if the pattern takes
        longer than `patterns.MAX_SECONDS`.
        """
        assert self.pattern is not None, "called only if there is a pattern"
        final = f"{OPEN_REASONING if in_reasoning else ''}{answer}".rpartition(_END_OF_REASONING)[2]
        if OPEN_REASONING in final:
            return None
        with time_limit(f"exact_match.pattern: got {shorten(self.pattern)}", f"the text {shorten(final)}"):
            found = [match[match.re.groups] or "" for match in re.finditer(self.pattern, final)]
        results = (" ".join(_COMMA_IN_NUMBER.sub("", text).split()) for text in found)
        return next(reversed([result for result in results if result]), None)
