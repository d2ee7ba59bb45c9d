"""Skeletons: what a chat template writes around the contents of a conversation.

A conversation is rendered a second time with a placeholder for each content. If filling in the contents gives the rendered
chat, the span of each content is known without a search, even if a content is empty or occurs elsewhere too. The skeleton
of a conversation without tools depends on its roles only, so it is cached.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from arctic_hydra.data.encode.spans import Span
from arctic_hydra.data.formats.messages import REASONING_KEYS, Message

Slot = tuple[str, int]
"""`c` (content) or `t` (reasoning), and the index of the message."""

PROBE: list[Message] = [{"role": "user", "content": "Zqc0qZ"}, {"role": "assistant", "content": "Zqc1qZ"}]
"""The smallest chat, with placeholders for its contents."""

_PLACEHOLDER = re.compile(r"Zq([ct])(\d+)qZ")
# The start of a tag at which two texts diverge, such as `<th` of `<think>`.
_PARTIAL_TAG = re.compile(r"<[^<>\s]*\Z")


def roles_key(messages: Sequence[Message]) -> tuple[tuple[str, str | None], ...] | None:
    """Return the cache key of the skeleton of a conversation without tools; None if it does not depend on roles only."""
    key: list[tuple[str, str | None]] = []
    for message in messages:
        thought = None
        if "content" not in message:
            return None
        if len(message) > 2:
            thought = reasoning_key(message)
            if thought is None or len(message) > 3:  # empty reasoning, a name, or tool calls
                return None
        key.append((message["role"], thought))
    return tuple(key)


def reasoning_key(message: Message) -> str | None:
    """Return the key of the reasoning of a message; None if there is none or it is empty."""
    return next((name for name in REASONING_KEYS if str(message.get(name) or "").strip()), None)


def with_placeholders(message: Message, index: int) -> Message:
    """Return the message with placeholders for content and reasoning; tool calls without content stay without."""
    changed = dict(message)
    if message.get("content") or not message.get("tool_calls"):
        changed["content"] = f"Zqc{index}qZ"
    if thought := reasoning_key(message):
        changed[thought] = f"Zqt{index}qZ"
    return changed


def is_plain(message: Message) -> bool:
    """Whether templates write the content unchanged; some do not if it is empty or contains reasoning."""
    content = message.get("content") or ""
    return bool(content.strip()) and "think>" not in content


class Skeleton:
    """A conversation rendered with placeholders for its contents."""

    def __init__(self, messages: list[Message], text: str, placeholders: bool = True) -> None:
        """Take messages with placeholders and their rendered text; `placeholders=False` if the messages contain none."""
        self.messages, self.text = messages, text
        matches = _PLACEHOLDER.finditer(text) if placeholders else iter(())
        found = [(match.start(), match.end(), (match[1], int(match[2]))) for match in matches]
        self.slots: list[Slot] = [slot for _, _, slot in found]
        self.spans: dict[Slot, Span] = {slot: (start, end) for start, end, slot in found}
        self._ends = [end for _, end, _ in found]
        bounds = [0, *(position for start, end, _ in found for position in (start, end)), len(text)]
        self._literals = [text[first:last] for first, last in zip(bounds[::2], bounds[1::2], strict=True)]
        self.is_unambiguous = len(self.spans) == len(found)
        """Whether the template writes no content more than once."""
        self.misplaced = self._misplaced()
        self.starts: dict[int, int | None] = {}
        """Position in this text at which generation of a message starts; filled on demand."""
        self.ends: dict[int, tuple[int, str]] = {}
        """Per message: how many characters follow it here as they do when it ends a chat, and what follows it then; on demand."""

    def _misplaced(self) -> int | None:
        """Return the first message that the template drops or writes out of order; None if there is none.

        System and tool messages may be anywhere.
        """
        position = 0
        for index, message in enumerate(self.messages):
            if not _PLACEHOLDER.fullmatch(message.get("content") or ""):
                continue
            start, end = self.spans.get(("c", index), (-1, -1))
            if start < 0:
                return index
            if message["role"] in ("user", "assistant"):
                if start < position:
                    return index
                position = end
        return None

    def fill(self, text: str, messages: Sequence[Message]) -> list[Span] | None:
        """Return the span of each slot in `text`; None if `text` is not this skeleton filled with the messages."""
        literals = self._literals
        position = len(literals[0])
        if not text.startswith(literals[0]):
            return None
        spans: list[Span] = []
        for (kind, index), literal in zip(self.slots, literals[1:], strict=True):
            message = messages[index]
            content = message["content"] if kind == "c" else message[reasoning_key(message) or ""]
            end = position + len(content)
            if not (text.startswith(content, position) and text.startswith(literal, end)):
                for form in _content_variants(content, message["role"]):
                    end = position + len(form)
                    if text.startswith(form, position) and text.startswith(literal, end):
                        break
                else:
                    return None
            spans.append((position, end))
            position = end + len(literal)
        return spans if position == len(text) else None

    def map_position(self, position: int, slot_spans: Sequence[Span]) -> int:
        """Return the position, outside of slots, that corresponds to `position` in a text with its slots at `slot_spans`."""
        before = bisect_right(self._ends, position)
        return position if not before else position - self._ends[before - 1] + slot_spans[before - 1][1]


def _content_variants(content: str, role: str) -> Iterator[str]:
    """Yield the forms in which templates write a content without changing its meaning."""
    yield content.strip()
    yield content.lstrip()
    yield content.rstrip()
    yield content.strip("\n")
    yield content.lstrip("\n")
    yield content.rstrip("\n")
    if role == "tool":  # some templates write tool results as JSON
        yield json.dumps(content, ensure_ascii=False)[1:-1]
        yield json.dumps(content.strip(), ensure_ascii=False)[1:-1]


def shared_prefix(text: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def constant_header(question: str, exchange: str, stop: re.Pattern[str]) -> str:
    """Return the generation prompt of a template that writes it after every chat; empty for other templates.

    Takes the renderings of the first message of `PROBE` and of both, and the pattern of stop tokens.
    """
    opened, rest = question.partition("Zqc0qZ")[2], exchange.partition("Zqc1qZ")[2]
    if not rest or exchange.partition("Zqc0qZ")[2] != f"{opened}Zqc1qZ{rest}":
        return ""
    shared = shared_prefix(opened[::-1], rest[::-1])
    ended = stop.match(rest, len(rest) - len(rest.lstrip()))  # the token that ends answers may end questions too
    header = rest[max(len(rest) - shared, ended.end() if ended else 0) :]
    return header if header.strip() else ""


def before_partial_tag(text: str, position: int) -> int:
    """Return `position`, or the start of a tag that is incomplete there."""
    partial = _PARTIAL_TAG.search(text, max(0, position - 40), position)
    return partial.start() if partial else position
