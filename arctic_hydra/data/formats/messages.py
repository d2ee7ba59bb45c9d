"""Conversations in the OpenAI format, checked before a chat template renders them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arctic_hydra.human_numbers import listed, shorten

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Row

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
MAX_CHARACTERS = 250_000_000
"""Most characters of one text; tokenizing more takes minutes and tens of gigabytes, in one call that nothing interrupts."""
_MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")

# Roles that usually precede each role; None is the start of the conversation.
_USUALLY_FOLLOWS: dict[str, tuple[str | None, ...]] = {
    "system": (None,),
    "developer": (None, "system"),
    "user": (None, "system", "developer", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


class RowProblem(ValueError):
    """A problem with one row; the caller, which knows source and row number, raises it as a DataError or counts it."""

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(text)


@dataclass
class Chat:
    """One checked conversation."""

    messages: list[Message]
    tools: list[Any] | None = None
    weights: list[int] | None = None
    """1 or 0 for each message: whether it may be trained on; None: 1 for all."""


@dataclass
class PlainText:
    """A text that is not rendered with a chat template; trained on from character `start`."""

    text: str
    start: int = 0


def malformed(text: str) -> RowProblem:
    """Return the problem of a row that is not a valid example."""
    return RowProblem("malformed", text)


def read_chat(row: Row, column: str = "messages") -> Chat:
    """Return the checked conversation in `column` of a row, with its tools.

    Raises RowProblem if the column is missing, a role is unknown, a tool message precedes every assistant message, a
    content is not a text, or there is no answer.
    """
    if row.get(column) is None:
        raise malformed(
            f"no '{column}' column; got the columns {columns_of(row)}; expected '{column}', a list of {{role, content}}"
        )
    return check_chat(row[column], read_tools(row), column)


def columns_of(row: Row) -> str:
    """Return the names of the columns that are not null, for messages; of many, the first ones."""
    return listed(sorted(name for name, value in row.items() if value is not None)) or "(none)"


def check_chat(messages: Any, tools: list[Any] | None = None, column: str = "messages") -> Chat:
    """Return checked messages without null values and empty `tool_calls`; raises RowProblem naming the message.

    The order of roles is left to the template: some accept two user messages in a row, some refuse them.
    """
    check_turns(messages, column)
    if not any(message["role"] == "assistant" for message in messages):
        raise malformed("no assistant message, so there is nothing to train on")
    return check_prompt(messages, tools)


def check_prompt(messages: list[Message], tools: list[Any] | None = None) -> Chat:
    """Return messages that `check_turns` has passed in the form that templates render; they need not hold an answer."""
    kept = [{key: value for key, value in message.items() if value is not None} for message in messages]
    weights = [1] * len(kept)
    for index, message in enumerate(kept):
        if "weight" in message:
            weights[index] = _weight(message.pop("weight"), index)
        if isinstance(message.get("content"), list):
            message["content"] = text_of(message["content"])
        if "tool_calls" in message:
            message["tool_calls"] = _read_calls(message["tool_calls"], f"message {index}")
            if not message["tool_calls"]:  # templates test whether the key exists
                del message["tool_calls"]
            message.setdefault("content", "")  # the encoder adapts a call without text to the template
    return Chat(kept, tools, weights if 0 in weights else None)


def check_turns(messages: Any, column: str = "messages") -> None:
    """Check roles and contents; raises RowProblem naming the message."""
    if not isinstance(messages, list):
        raise malformed(f"{column} is a {type(messages).__name__}, expected a list of {{role, content}}")
    if not messages:
        raise malformed(f"{column} is empty, expected at least one question and one answer")
    answered = False
    for index, message in enumerate(messages):
        _check_message(message, index)
        answered = answered or message["role"] == "assistant"
        if message["role"] == "tool" and not answered:
            raise malformed(
                f"message {index}: role 'tool' before the first assistant message; expected tool messages "
                f"after an assistant's call"
            )


def text_of(content: Any) -> str:
    """Return the text of a checked content: a text, null or a list of text parts."""
    return "".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def parse_json(text: str) -> Any:
    """Return the value of JSON text within a row; raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def unusual_turn(messages: list[Message]) -> int | None:
    """Return the index of the first message whose role does not usually follow the previous one; None if there is none."""
    roles = [message["role"] for message in messages]
    pairs = enumerate(zip([None, *roles], roles, strict=False))
    return next((index for index, (before, role) in pairs if before not in _USUALLY_FOLLOWS[role]), None)


def has_only_blank_answers(messages: list[Message]) -> bool:
    """Whether no assistant message of a checked conversation has a text other than whitespace, reasoning or a tool call."""
    return not any(
        message["role"] == "assistant"
        and (
            message.get("tool_calls") or any(str(message.get(key, "")).strip() for key in ("content", *REASONING_KEYS))
        )
        for message in messages
    )


def check_media(row: Row) -> None:
    """Check that no column contains images, videos or audio; raises RowProblem naming the column."""
    for name in _MEDIA_COLUMNS:
        value = row.get(name)
        if value is not None and value != [] and value != "":
            many = f"{len(value)} of them" if isinstance(value, list) else "one"
            raise malformed(f"column '{name}' contains {many}, but training is on text only; expected rows of text")


def read_tools(row: Row) -> list[Any] | None:
    """Return the row's tool schemas, None if it has none; `tools` may be JSON text.

    Raises RowProblem if it is neither a list of objects nor JSON text of one.
    """
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = parse_json(tools)
        except ValueError as error:
            raise malformed(f"tools is str, expected a list of JSON schemas or JSON text of one ({error})") from error
    if tools is None or tools == [] or tools == "":
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise malformed(f"tools is {type(tools).__name__}, expected a list of JSON schemas")
    # Templates expect the OpenAI format, {type: function, function: {...}}.
    return [tool if "type" in tool or "name" not in tool else {"type": "function", "function": tool} for tool in tools]


def _read_calls(calls: Any, where: str) -> list[Any]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise malformed(f"{where}: tool_calls is {type(calls).__name__}, expected a list of objects")
    return [_read_call(call, where) for call in calls]


def _read_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a call with its arguments as an object: OpenAI sends JSON text, which templates would render as a string."""
    inner = call.get("function", call)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise malformed(f"{where}: a tool call has no name, expected {{function: {{name, arguments}}}}")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}  # "" means no arguments
        except ValueError as error:
            raise malformed(f"{where}: the arguments of a tool call are not JSON ({error})") from error
    if not isinstance(arguments, dict | type(None)):
        kind = type(arguments).__name__
        raise malformed(f"{where}: the arguments of a tool call are a {kind}, expected an object of names and values")
    inner = {**inner, "arguments": arguments or {}}
    return {**call, "function": inner} if "function" in call else inner


def _weight(value: Any, index: int) -> int:
    if value not in (0, 1):
        raise malformed(f"message {index}: weight is {value!r}, expected 0 (not trained on) or 1")
    return int(value)


def _check_message(message: Any, index: int) -> None:
    if not isinstance(message, dict):
        raise malformed(f"message {index} is a {type(message).__name__}, expected an object {{role, content}}")
    role = message.get("role")
    if role not in ROLES:
        raise malformed(f"message {index}: role {shorten(role)}, expected one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return
    for key in REASONING_KEYS:
        if message.get(key) is not None:
            check_text(message[key], f"message {index} ({role}): {key}")
    if content is None and "content" not in message:
        keys = listed(sorted(message))
        raise malformed(f"message {index} ({role}): content is missing (keys: {keys}), expected a text")
    if isinstance(content, list) and content and all(map(_is_text_part, content)):
        for number, part in enumerate(content):
            check_text(part["text"], f"message {index} ({role}): content[{number}]")
    elif not _is_plain_ascii(content):
        check_text(content, f"message {index} ({role}): content")


def _is_text_part(part: Any) -> bool:
    """Whether a content part is `{type: text, text: ...}` with no other value; columnar files add null values."""
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        return False
    return all(value is None for key, value in part.items() if key not in ("type", "text"))


def _is_plain_ascii(value: Any) -> bool:
    """Whether `check_text` accepts the value; faster for the common case."""
    return isinstance(value, str) and value.isascii() and "\0" not in value and len(value) <= MAX_CHARACTERS


def check_text(value: Any, what: str) -> str:
    """Return `value` if it is a text to train on; raises RowProblem saying what it is instead."""
    if not isinstance(value, str):
        got = "null" if value is None else type(value).__name__
        parts = [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
        media = sorted({str(kind) for part in parts if (kind := part.get("type")) not in ("text", None)})
        hint = f" (with {', '.join(media)} parts; training is on text only)" if media else ""
        raise malformed(f"{what} is {got}{hint}, expected a text")
    if len(value) > MAX_CHARACTERS:
        raise malformed(f"{what} has {len(value):,} characters, expected at most {MAX_CHARACTERS:,}")
    if "\0" in value:
        raise malformed(f"{what} contains a NUL character at position {value.index(chr(0))}, expected a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise malformed(
                f"{what} contains {half} at position {error.start}, half of a surrogate pair, expected a text"
            ) from error
    return value


def prepend_system(row: Row, messages: Any) -> Any:
    """Return the messages preceded by the row's `system` column, unless they begin with a system message.

    Anything other than a list of messages is returned unchanged, for `check_turns` to refuse.
    """
    system = row.get("system")
    if system in (None, "") or not isinstance(messages, list) or not messages:
        return messages
    if isinstance(messages[0], dict) and messages[0].get("role") == "system":
        return messages
    return [{"role": "system", "content": check_text(system, "system")}, *messages]
