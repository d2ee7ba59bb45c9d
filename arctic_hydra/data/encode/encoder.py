"""Encodes batches of conversations and plain texts as token ids and supervised spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.encode.chat import ChatEncoder, TurnChoice
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.encode.template import TOOL_TEMPLATE
from arctic_hydra.data.encode.text import TextEncoder
from arctic_hydra.data.formats.messages import Chat, PlainText, RowProblem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ExampleEncoder:
    """Encodes the examples that the readers of `formats` return, in order."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: TurnChoice) -> None:
        self._tokenizer, self._turns = tokenizer, turns
        named = tokenizer.chat_template
        self._has_tool_template = isinstance(named, dict) and TOOL_TEMPLATE in named
        # Created at the first example of each kind, since plain texts need no chat template.
        self._encoders: dict[str, ChatEncoder | TextEncoder] = {}

    def encode(self, examples: Sequence[Chat | PlainText | RowProblem]) -> list[Encoded | RowProblem]:
        """Return the ids and spans of each example, or its problem."""
        kinds: dict[str, list[Any]] = {}
        order = [self._kind(item) for item in examples]
        for kind, item in zip(order, examples, strict=True):
            kinds.setdefault(kind, []).append(item)
        found = {kind: iter(self._encoder(kind).encode(items) if kind else items) for kind, items in kinds.items()}
        return [next(found[kind]) for kind in order]

    def _kind(self, item: Chat | PlainText | RowProblem) -> str:
        if isinstance(item, Chat):
            return TOOL_TEMPLATE if item.tools is not None and self._has_tool_template else "chat"
        return "text" if isinstance(item, PlainText) else ""

    def _encoder(self, kind: str) -> ChatEncoder | TextEncoder:
        if kind not in self._encoders:
            self._encoders[kind] = (
                TextEncoder(self._tokenizer)
                if kind == "text"
                else ChatEncoder(self._tokenizer, self._turns, with_tools=kind == TOOL_TEMPLATE)
            )
        return self._encoders[kind]
