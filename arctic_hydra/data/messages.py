"""Checking conversations in the OpenAI form before anything renders them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")

# Which roles may stand before each role; None is the start of the conversation.
_MAY_FOLLOW: dict[str, tuple[str | None, ...]] = {
    "system": (None,),
    "developer": (None, "system"),
    "user": (None, "system", "developer", "assistant"),
    "assistant": (None, "system", "developer", "user", "tool"),
    "tool": ("assistant", "tool"),
}


class RowProblem(ValueError):
    """What is wrong with one row; whoever knows source and row number turns it into a DataError or a count."""

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(text)


def read_messages(row: Mapping[str, Any]) -> list[Message]:
    """Return the checked messages of a row, without the keys that hold None.

    Raises RowProblem: no `messages`, an unknown role, roles out of order, content that is no text, no answer.
    """
    if "messages" not in row:
        raise RowProblem(
            "malformed",
            f"no 'messages' column; got the columns {', '.join(sorted(row)) or '(none)'}; expected 'messages', a list "
            f"of {{role, content}}",
        )
    messages = row["messages"]
    if not isinstance(messages, list):
        raise RowProblem("malformed", f"messages is a {type(messages).__name__}, expected a list of {{role, content}}")
    if not messages:
        raise RowProblem("malformed", "messages is empty, expected at least one question and one answer")
    previous: str | None = None
    for index, message in enumerate(messages):
        _check_message(message, f"message {index}")
        role = message["role"]
        if previous not in _MAY_FOLLOW[role]:
            where = f"after {previous!r}" if previous else "at the start"
            raise RowProblem(
                "malformed",
                f"message {index}: role {role!r} cannot stand {where}; expected an optional system message, then user "
                f"and assistant in turn, tool messages only after an assistant's call",
            )
        previous = role
    if not any(message["role"] == "assistant" for message in messages):
        raise RowProblem("malformed", "no assistant message, so there is nothing to train on")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def read_tools(row: Mapping[str, Any]) -> list[Any] | None:
    """Return the row's tool schemas, None where it has none. Raises RowProblem when `tools` is no list."""
    tools = row.get("tools")
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowProblem("malformed", f"tools is {type(tools).__name__}, expected a list of JSON schemas")
    return tools


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise RowProblem("malformed", f"{where} is a {type(message).__name__}, expected an object {{role, content}}")
    role = message.get("role")
    if role not in ROLES:
        hint = (
            "; ShareGPT rows (from, value) have another form" if "from" in message or role in ("human", "gpt") else ""
        )
        raise RowProblem("malformed", f"{where}: role {role!r}, expected one of {', '.join(ROLES)}{hint}")
    content = message.get("content")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return
    if not isinstance(content, str):
        got = "null" if content is None and "content" in message else type(content).__name__
        got = got if "content" in message else f"missing (keys: {', '.join(sorted(message))})"
        raise RowProblem("malformed", f"{where} ({role}): content is {got}, expected a text")
