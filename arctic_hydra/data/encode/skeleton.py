"""What a chat template writes around the contents of a conversation, and where in a rendered chat the contents stand.

The conversation is rendered once more with a mark in place of each content. A rendered chat that equals this skeleton with
the contents put in for the marks has each content at a known position: nothing is searched for, so a content that occurs
elsewhere too, or is empty, is no matter. The skeleton of a conversation without tools follows from its roles alone.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from arctic_hydra.data.encode.spans import Span
from arctic_hydra.data.formats.messages import REASONING_KEYS, Message

Slot = tuple[str, int]
"""`c` (content) or `t` (thoughts), and the number of the message."""

PROBE: list[Message] = [{"role": "user", "content": "Zqc0qZ"}, {"role": "assistant", "content": "Zqc1qZ"}]
"""The smallest chat, with marks for its contents."""

_PLACEHOLDER = re.compile(r"Zq([ct])(\d+)qZ")
# A tag that is only begun where two texts part, such as `<th` of `<think>`.
_PARTIAL_TAG = re.compile(r"<[^<>\s]*\Z")


def roles_key(messages: Sequence[Message]) -> tuple[tuple[str, str | None], ...] | None:
    """Return what the skeleton of a conversation without tools follows from; None where it takes more than that."""
    key: list[tuple[str, str | None]] = []
    for message in messages:
        thought = None
        if "content" not in message:
            return None
        if len(message) > 2:
            thought = thought_key(message)
            if thought is None or len(message) > 3:  # an empty thought, or a name or calls
                return None
        key.append((message["role"], thought))
    return tuple(key)


def thought_key(message: Message) -> str | None:
    """Return the name under which a message keeps thoughts that are not empty."""
    return next((name for name in REASONING_KEYS if str(message.get(name) or "").strip()), None)


def with_placeholders(message: Message, index: int) -> Message:
    """Return the message with marks in place of content and thoughts; calls without a text keep having none."""
    changed = dict(message)
    if message.get("content") or not message.get("tool_calls"):
        changed["content"] = f"Zqc{index}qZ"
    if thought := thought_key(message):
        changed[thought] = f"Zqt{index}qZ"
    return changed


def is_plain(message: Message) -> bool:
    """Whether templates write the content as it is: not so where it is empty, or holds thoughts."""
    content = message.get("content") or ""
    return bool(content.strip()) and "think>" not in content


class Skeleton:
    """A conversation rendered with marks in place of its contents."""

    def __init__(self, messages: list[Message], text: str, placeholders: bool = True) -> None:
        """Take the messages with their marks and what the template made of them; `placeholders` says whether they have any."""
        self.messages, self.text = messages, text
        matches = _PLACEHOLDER.finditer(text) if placeholders else iter(())
        found = [(match.start(), match.end(), (match[1], int(match[2]))) for match in matches]
        self.slots: list[Slot] = [slot for _, _, slot in found]
        self.spans: dict[Slot, Span] = {slot: (start, end) for start, end, slot in found}
        self._ends = [end for _, end, _ in found]
        bounds = [0, *(position for start, end, _ in found for position in (start, end)), len(text)]
        self._literals = [text[first:last] for first, last in zip(bounds[::2], bounds[1::2], strict=True)]
        self.is_unambiguous = len(self.spans) == len(found)
        """Whether the template writes no content twice."""
        self.misplaced = self._misplaced()
        self.starts: dict[int, int | None] = {}
        """Where the model begins to write a message, in this text; filled as it is found out."""
        self.ends: dict[int, tuple[int, str]] = {}
        """What follows a message that is the last one, and how many characters of it follow here too."""

    def _misplaced(self) -> int | None:
        """Return the first message that the template leaves out, or writes before one that it follows; None if none.

        System and tool messages may stand anywhere.
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
        """Return the place of each slot in `text`; None where it is not this skeleton filled with the messages."""
        literals = self._literals
        position = len(literals[0])
        if not text.startswith(literals[0]):
            return None
        spans: list[Span] = []
        for (kind, index), literal in zip(self.slots, literals[1:], strict=True):
            message = messages[index]
            content = message["content"] if kind == "c" else message[thought_key(message) or ""]
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
        """Return where a position outside the slots of this text is in the text whose slots are at `slot_spans`."""
        before = bisect_right(self._ends, position)
        return position if not before else position - self._ends[before - 1] + slot_spans[before - 1][1]


def _content_variants(content: str, role: str) -> Iterator[str]:
    """Yield what templates make of a content without changing what it says."""
    yield content.strip()
    yield content.lstrip()
    yield content.rstrip()
    yield content.strip("\n")
    yield content.lstrip("\n")
    yield content.rstrip("\n")
    if role == "tool":  # some templates write a tool's answer as JSON
        yield json.dumps(content, ensure_ascii=False)[1:-1]
        yield json.dumps(content.strip(), ensure_ascii=False)[1:-1]


def shared_prefix(text: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def constant_header(question: str, exchange: str, stop: re.Pattern[str]) -> str:
    """Return what a template writes after every chat to open an answer, whether one is asked for or not; empty for others.

    Takes the first message of `PROBE` as it renders it, both of them, and what a turn may end in.
    """
    opened, rest = question.partition("Zqc0qZ")[2], exchange.partition("Zqc1qZ")[2]
    if not rest or exchange.partition("Zqc0qZ")[2] != f"{opened}Zqc1qZ{rest}":
        return ""
    shared = shared_prefix(opened[::-1], rest[::-1])
    ended = stop.match(rest, len(rest) - len(rest.lstrip()))  # what ends the answer may end questions too
    header = rest[max(len(rest) - shared, ended.end() if ended else 0) :]
    return header if header.strip() else ""


def before_partial_tag(text: str, position: int) -> int:
    """Return `position`, or where the tag begins that is only begun before it."""
    begun = _PARTIAL_TAG.search(text, max(0, position - 40), position)
    return begun.start() if begun else position
