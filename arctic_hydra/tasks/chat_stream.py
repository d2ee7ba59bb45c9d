"""Prints an answer while it is generated, its reasoning dimmed in a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO, Any

from transformers import TextStreamer

from arctic_hydra.report.html import escape_controls

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_OPEN, _CLOSE = "<think>", "</think>"


def dimmed(text: str, stream: IO[str]) -> str:
    """Return a text dimmed if `stream` is a terminal with colours."""
    return f"{_DIM}{text}{_PLAIN}" if has_styles(stream) else text


def has_styles(stream: IO[str]) -> bool:
    """Whether `stream` is a terminal that shows styles, according to its environment (NO_COLOR, TERM=dumb)."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


class AnswerStream(TextStreamer):
    """Prints whole words to standard output; stop tokens, special tokens and the prompt are left out."""

    def __init__(self, tokenizer: Any, stops: Sequence[int], prompt: list[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""
        """What was printed."""
        self._stops = set(stops)
        self._in_terminal, self._styled = sys.stdout.isatty(), has_styles(sys.stdout)
        # Some templates open the reasoning themselves, at the end of the prompt.
        if self._styled and str(tokenizer.decode(prompt[-8:])).rstrip().endswith(_OPEN):
            sys.stdout.write(_DIM)

    def put(self, value: Any) -> None:
        """Take the tokens of the prompt, then one token of the answer at a time."""
        if self.next_tokens_are_prompt or int(value.reshape(-1)[0]) not in self._stops:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print the next words, with control characters escaped."""
        self.text += text
        if self._in_terminal:
            text = escape_controls(text)
        if self._styled:
            text = text.replace(_OPEN, _DIM + _OPEN).replace(_CLOSE, _CLOSE + _PLAIN)
        sys.stdout.write(text + (_PLAIN * self._styled + "\n") * stream_end)
        sys.stdout.flush()
