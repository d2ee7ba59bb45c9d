"""A rendered chat beside its messages: whether all of them are there in their order, and where an answer begins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from arctic_hydra.data.encode.spans import Span, shorten
from arctic_hydra.data.formats.messages import Chat, Message, RowProblem

TAGGED_ADVICE = "pass tokenizer.chat_template=<file> with `{% generation %}` around every answer and its stop token"


def check_complete(chat: Chat, text: str, content_spans: Mapping[int, Span]) -> None:
    """Raise RowProblem when the template left a turn out, or wrote the user's turns in another order.

    `content_spans` holds the messages whose position is known; the others are looked for.
    """
    position = 0
    for index, message in enumerate(chat.messages):
        role, calls = message["role"], message.get("tool_calls") or ()
        if role == "assistant":  # its answer is located and compared
            if not all(_name(call) in text for call in calls):
                raise missing_turn(index, message)
            continue
        content = (message.get("content") or "").strip()
        start, end = content_spans.get(index) or _find(text, content, role, position if role == "user" else 0)
        if start < (position if role == "user" else 0):
            raise missing_turn(index, message)
        if role == "user":
            position = end


def check_tools(chat: Chat, text: str) -> None:
    """Raise RowProblem when the template left the tools out."""
    if chat.tools and not all(_name(tool) in text for tool in chat.tools):
        raise RowProblem(
            "template",
            "the chat template leaves the tools out, so the model would be trained on calls that it cannot know of; "
            "pass tokenizer.chat_template=<file> with a template that writes `tools`",
        )


def check_order(chat: Chat, text: str, content_spans: Mapping[int, Span], answers: Mapping[int, Span]) -> None:
    """Raise RowProblem when a user's turn or an answer is not after the turns before it, or a call is left out.

    `answers` holds the positions of the answers that are located, `content_spans` those of contents.
    """
    position = 0
    for index, message in enumerate(chat.messages):
        if message["role"] == "user":
            content = (message.get("content") or "").strip()
            start, end = content_spans.get(index) or _find(text, content, "user", position)
        elif message["role"] == "assistant":
            check_calls(index, message, text[slice(*answers[index])] if index in answers else text[position:])
            start, end = answers.get(index) or content_spans.get(index) or (position, position)
        else:
            continue
        if start < position:
            raise missing_turn(index, message)
        position = end


def check_calls(index: int, message: Message, rendered: str) -> None:
    """Raise RowProblem unless every call of a message is in what was rendered for it: its name and its arguments."""
    calls = message.get("tool_calls") or ()
    names = [_name(call) for call in calls]
    for name, call in zip(names, calls, strict=True):
        missing = "" if rendered.count(name) >= names.count(name) else f"the call of {name!r}"
        for value in () if missing else _argument_values(call.get("function", call).get("arguments")):
            if not any(form in rendered for form in _written_forms(value)):
                missing = f"the argument {shorten(str(value))} of the call of {name!r}"
                break
        if missing:
            raise RowProblem(
                "template",
                f"message {index}: the chat template leaves this assistant turn out, or changes or moves it; expected "
                f"{missing}, rendered {shorten(rendered)}; pass tokenizer.chat_template=<file> with a template that "
                f"writes `tool_calls`",
            )


def _name(call: Any) -> str:
    """Return the name of a call or of a tool."""
    return str(call.get("function", call).get("name", ""))


def _argument_values(value: Any) -> Iterator[Any]:
    """Yield the names and values within the arguments of a call; not null, which some templates leave out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner is not None:
                yield key
                yield from _argument_values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _argument_values(inner)
    elif value is not None:
        yield value


def _written_forms(value: Any) -> Iterator[str]:
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


def _find(text: str, content: str, role: str, position: int) -> Span:
    found = text.find(content, position)
    if found < 0 and role == "tool":  # some templates write a tool's answer as JSON
        content = json.dumps(content, ensure_ascii=False)[1:-1]
        found = text.find(content)
    return (found, found + len(content))


def missing_turn(index: int, message: Message) -> RowProblem:
    """Return the problem of a message that is not where it belongs."""
    content = (message.get("content") or "").strip()
    return RowProblem(
        "template",
        f"message {index}: the chat template leaves this {message['role']} turn out, or changes or moves it; got "
        f"{shorten(content)}, expected it in the rendered chat, after the turns before it; pass "
        f"tokenizer.chat_template=<file>",
    )


def find_content(body: str, content: str, has_calls: bool) -> int | None:
    """Return where `content` begins in what was rendered, spaces around it aside; None if it is not there."""
    if body.endswith(content):
        return len(body) - len(content)
    for answer, rendered in ((content.strip(), body.rstrip()), (content.lstrip(), body)):
        if rendered.endswith(answer):
            return len(rendered) - len(answer)
    if has_calls:  # calls follow the text
        position = body.find(content.strip())
        return position if position >= 0 else None
    return None


def skip_space(text: str, position: int) -> int:
    """Return the first position from `position` on that is no white space, or the end."""
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def no_stop_token(index: int) -> RowProblem:
    return RowProblem(
        "template",
        f"message {index}: the chat template writes no stop token after the answer, so the model would never learn to "
        f"end it; expected one such as the eos token; pass tokenizer.chat_template=<file>, or data.eot_tokens where "
        f"another token ends a turn",
    )


def changed_answer(index: int, content: str, rendered: str) -> RowProblem:
    why = ""
    if "</think>" in content and "</think>" not in rendered:
        why = (
            " (it takes the thoughts out; where it keeps those of the last turn, data.train_on=last trains on that one)"
        )
    return RowProblem(
        "template",
        f"message {index}: the chat template changes the answer{why}; expected {shorten(content)}, rendered "
        f"{shorten(rendered)}; pass tokenizer.chat_template=<file> with a template that writes answers unchanged",
    )


def unlocated_turn(index: int, message: Message) -> RowProblem:
    what = "tool call" if message.get("tool_calls") else "answer"
    return RowProblem(
        "template",
        f"message {index}: the chat template writes the beginning of this conversation differently once more "
        f"messages follow, and no header or content tells for sure where this {what} begins and ends; {TAGGED_ADVICE}",
    )
