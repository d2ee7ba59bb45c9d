"""A rendered chat beside its messages: whether all of them are there in their order, and where an answer begins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from arctic_hydra.data.encode.spans import Span, short
from arctic_hydra.data.formats.messages import Chat, Message, RowProblem


def check_complete(chat: Chat, text: str, placed: Mapping[int, Span]) -> None:
    """Raise RowProblem when the template left a turn out, or wrote the user's turns in another order.

    `placed` holds the messages whose place is known; the others are looked for.
    """
    place = 0
    for index, message in enumerate(chat.messages):
        role, calls = message["role"], message.get("tool_calls") or ()
        if role == "assistant":  # its answer is located and compared
            if not all(_name(call) in text for call in calls):
                raise left_out(index, message)
            continue
        content = (message.get("content") or "").strip()
        start, end = placed.get(index) or _find(text, content, role, place if role == "user" else 0)
        if start < (place if role == "user" else 0):
            raise left_out(index, message)
        if role == "user":
            place = end


def check_tools(chat: Chat, text: str) -> None:
    """Raise RowProblem when the template left the tools out."""
    if chat.tools and not all(_name(tool) in text for tool in chat.tools):
        raise RowProblem(
            "template",
            "the chat template leaves the tools out, so the model would be trained on calls that it cannot know of; "
            "pass tokenizer.chat_template=<file> with a template that writes `tools`",
        )


def check_order(chat: Chat, text: str, placed: Mapping[int, Span], answers: Mapping[int, Span]) -> None:
    """Raise RowProblem when a user's turn or an answer is not after the turns before it, or a call is left out.

    `answers` holds the places of the answers that are located, `placed` those of contents.
    """
    place = 0
    for index, message in enumerate(chat.messages):
        if message["role"] == "user":
            content = (message.get("content") or "").strip()
            start, end = placed.get(index) or _find(text, content, "user", place)
        elif message["role"] == "assistant":
            check_calls(index, message, text[slice(*answers[index])] if index in answers else text[place:])
            start, end = answers.get(index) or placed.get(index) or (place, place)
        else:
            continue
        if start < place:
            raise left_out(index, message)
        place = end


def check_calls(index: int, message: Message, rendered: str) -> None:
    """Raise RowProblem unless every call of a message is in what was rendered for it: its name and its arguments."""
    calls = message.get("tool_calls") or ()
    names = [_name(call) for call in calls]
    for name, call in zip(names, calls, strict=True):
        missing = "" if rendered.count(name) >= names.count(name) else f"the call of {name!r}"
        for value in () if missing else _leaves(call.get("function", call).get("arguments")):
            if not any(form in rendered for form in _forms(value)):
                missing = f"the argument {short(str(value))} of the call of {name!r}"
                break
        if missing:
            raise RowProblem(
                "template",
                f"message {index}: the chat template leaves this assistant turn out, or changes or moves it; expected "
                f"{missing}, rendered {short(rendered)}; pass tokenizer.chat_template=<file> with a template that "
                f"writes `tool_calls`",
            )


def _name(call: Any) -> str:
    """Return the name of a call or of a tool."""
    return str(call.get("function", call).get("name", ""))


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the names and values within the arguments of a call; not null, which some templates leave out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner is not None:
                yield key
                yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        yield value


def _forms(value: Any) -> Iterator[str]:
    """Yield how templates write a value: as it is, as JSON, as Python, or as JSON within JSON."""
    yield str(value)
    if isinstance(value, bool):
        yield str(value).lower()
    if isinstance(value, str):
        yield value.strip()
        written = json.dumps(value, ensure_ascii=False)[1:-1]
        yield written
        yield repr(value)[1:-1]
        yield json.dumps(value)[1:-1]
        yield json.dumps(written, ensure_ascii=False)[1:-1]
    elif isinstance(value, float):
        yield json.dumps(value)


def _find(text: str, content: str, role: str, place: int) -> Span:
    found = text.find(content, place)
    if found < 0 and role == "tool":  # some templates write a tool's answer as JSON
        content = json.dumps(content, ensure_ascii=False)[1:-1]
        found = text.find(content)
    return (found, found + len(content))


def left_out(index: int, message: Message) -> RowProblem:
    """Return the problem of a message that is not where it belongs."""
    content = (message.get("content") or "").strip()
    return RowProblem(
        "template",
        f"message {index}: the chat template leaves this {message['role']} turn out, or changes or moves it; got "
        f"{short(content)}, expected it in the rendered chat, after the turns before it; pass "
        f"tokenizer.chat_template=<file>",
    )


def answer_place(body: str, content: str, has_calls: bool) -> int | None:
    """Return where `content` begins in what was rendered, spaces around it aside; None if it is not there."""
    if body.endswith(content):
        return len(body) - len(content)
    for answer, rendered in ((content.strip(), body.rstrip()), (content.lstrip(), body)):
        if rendered.endswith(answer):
            return len(rendered) - len(answer)
    if has_calls:  # calls follow the text
        place = body.find(content.strip())
        return place if place >= 0 else None
    return None


def skip_space(text: str, place: int) -> int:
    """Return the first place from `place` on that is no white space, or the end."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place
