"""Compares a rendered chat with its messages: none may be missing, changed or out of order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from arctic_hydra.data.encode.spans import Span
from arctic_hydra.data.formats.messages import Chat, Message, RowProblem
from arctic_hydra.human_numbers import shorten

_NEAR_CHARACTERS = 200
TAGGED_ADVICE = "pass tokenizer.chat_template=<file> with `{% generation %}` around every answer and its stop token"


def check_complete(chat: Chat, text: str, content_spans: Mapping[int, Span]) -> None:
    """Raise RowProblem if the template dropped a turn or reordered the user's turns.

    `content_spans` holds the spans of contents that are already located; the other contents are searched for.
    """
    position = 0
    for index, message in enumerate(chat.messages):
        role, calls = message["role"], message.get("tool_calls") or ()
        if role == "assistant":  # the answer itself is compared when it is located
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
    """Raise RowProblem if the template ignores the tools."""
    if chat.tools and not all(_name(tool) in text for tool in chat.tools):
        raise RowProblem(
            "template",
            "the chat template ignores the tools, so the model would be trained on calls of tools that it never sees; "
            "pass tokenizer.chat_template=<file> with a template that writes `tools`",
        )


def check_order(chat: Chat, text: str, content_spans: Mapping[int, Span], answers: Mapping[int, Span]) -> None:
    """Raise RowProblem if user turns and answers are out of order, or a tool call is missing.

    `answers` holds the spans of located answers, `content_spans` those of located contents.
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
    """Raise RowProblem unless the rendered turn contains the name and the arguments of every tool call of a message."""
    calls = message.get("tool_calls") or ()
    names = [_name(call) for call in calls]
    expected = Counter(names)
    written = {name: rendered.count(name) for name in expected}
    position = 0  # templates write arguments in order: searching on from the last one takes linear time
    for name, call in zip(names, calls, strict=True):
        missing = "" if written[name] >= expected[name] else f"the call of {name!r}"
        for value in () if missing else _argument_values(call.get("function", call).get("arguments")):
            for form in _written_forms(value):
                found = rendered.find(form, position, position + _NEAR_CHARACTERS + len(form))
                if found < 0:
                    found = rendered.find(form)
                if found >= 0:
                    position = found
                    break
            else:
                missing = f"the argument {shorten(str(value))} of the call of {name!r}"
                break
        if missing:
            raise RowProblem(
                "template",
                f"message {index}: the chat template drops, changes or moves this assistant turn; expected "
                f"{missing}, rendered {shorten(rendered)}; pass tokenizer.chat_template=<file> with a template that "
                f"writes `tool_calls`",
            )


def _name(call: Any) -> str:
    """Return the name of a tool or of a tool call."""
    return str(call.get("function", call).get("name", ""))


def _argument_values(value: Any) -> Iterator[Any]:
    """Yield the names and values within the arguments of a tool call, except null, which some templates omit."""
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
    """Yield the ways in which templates write a value: unchanged, as JSON, as Python, or as JSON within JSON."""
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
    if found < 0 and role == "tool":  # some templates write tool results as JSON
        content = json.dumps(content, ensure_ascii=False)[1:-1]
        found = text.find(content)
    return (found, found + len(content))


def missing_turn(index: int, message: Message) -> RowProblem:
    """Return the problem of a message that is missing, changed or out of order."""
    content = (message.get("content") or "").strip()
    return RowProblem(
        "template",
        f"message {index}: the chat template drops, changes or moves this {message['role']} turn; got "
        f"{shorten(content)}, expected it in the rendered chat after the turns before it; pass "
        f"tokenizer.chat_template=<file> with a template that writes every turn in order",
    )


def find_content(body: str, content: str, has_calls: bool) -> int | None:
    """Return the start of `content` in a rendered turn, ignoring white space around it; None if it is not there."""
    if body.endswith(content):
        return len(body) - len(content)
    for answer, rendered in ((content.strip(), body.rstrip()), (content.lstrip(), body)):
        if rendered.endswith(answer):
            return len(rendered) - len(answer)
    if has_calls:  # tool calls follow the content
        position = body.find(content.strip())
        return position if position >= 0 else None
    return None


def skip_space(text: str, position: int) -> int:
    """Return the first position from `position` on without white space, or the end."""
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def no_stop_token(index: int) -> RowProblem:
    """Return the problem of an answer without a stop token."""
    return RowProblem(
        "template",
        f"message {index}: the chat template writes no stop token after the answer, so the model would not learn to stop; "
        f"expected one, such as the eos token; pass tokenizer.chat_template=<file>, or data.eot_tokens if another token "
        f"ends a turn",
    )


def changed_answer(index: int, content: str, rendered: str) -> RowProblem:
    """Return the problem of an answer that the template changes."""
    why = ""
    if "</think>" in content and "</think>" not in rendered:
        why = " (it removes the reasoning; if it keeps that of the last turn, data.train_on=last trains on that turn only)"
    return RowProblem(
        "template",
        f"message {index}: the chat template changes the answer{why}; expected {shorten(content)}, rendered "
        f"{shorten(rendered)}; pass tokenizer.chat_template=<file> with a template that writes answers unchanged",
    )


def unlocated_turn(index: int, message: Message) -> RowProblem:
    """Return the problem of a turn whose span cannot be determined."""
    what = "tool call" if message.get("tool_calls") else "answer"
    return RowProblem(
        "template",
        f"message {index}: the chat template renders the start of this conversation differently when more messages "
        f"follow, so the span of this {what} cannot be determined; {TAGGED_ADVICE}",
    )
