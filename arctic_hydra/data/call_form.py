"""How a chat template takes tool calls: OpenAI's form is the usual one, and some templates know another only.

DeepSeek's put the arguments into a text, so that they must be one, and write calls only where the content is null.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from arctic_hydra.data.formats.messages import Message

_NAME, _KEY = "zqcallqz", "zqkeyqz"


@dataclass(frozen=True)
class CallForm:
    """The form of the calls of a message."""

    as_text: bool = False
    """Arguments as JSON text, not as an object; the call then has a type too."""
    null_content: bool = False
    """No content, where it is empty."""

    def of(self, message: Message) -> Message:
        """Return the message with its calls in this form; a message without calls as it is."""
        calls = message.get("tool_calls")
        if not calls:
            return message
        changed = dict(message)
        if self.null_content and not changed.get("content"):
            changed["content"] = None
        if self.as_text:
            inner = [call.get("function", call) for call in calls]
            texts = [json.dumps(one.get("arguments") or {}, ensure_ascii=False) for one in inner]
            changed["tool_calls"] = [
                {"type": "function", **call, "function": {**one, "arguments": text}}
                for call, one, text in zip(calls, inner, texts, strict=True)
            ]
        return changed


_FORMS = (
    CallForm(),
    CallForm(null_content=True),
    CallForm(as_text=True),
    CallForm(as_text=True, null_content=True),
)


def call_form(render: Callable[[list[Message]], str]) -> CallForm:
    """Return the first form in which a template writes a call's name and arguments; the usual one if it does in none."""
    call = {"type": "function", "function": {"name": _NAME, "arguments": {_KEY: "1"}}}
    messages: list[Message] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    for form in _FORMS:
        with suppress(Exception):  # templates raise anything
            text = render([form.of(message) for message in messages])
            if _NAME in text and _KEY in text:
                return form
    return CallForm()
