"""Parts of rows that several forms share: ShareGPT turns, a system column, Alpaca's question with its history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from arctic_hydra.data.formats.messages import Message, check_text, columns_of, malformed

Row = Mapping[str, Any]

CONVERSATION_COLUMNS = ("conversations", "conversation")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}


def sharegpt_turns(row: Row) -> list[Message]:
    """Return the messages of a row's {from, value} turns; raises RowProblem naming the turn that is none."""
    name = next((name for name in CONVERSATION_COLUMNS if row.get(name) is not None), None)
    if name is None:
        raise malformed(
            f"no 'conversations' column; got the columns {columns_of(row)}; expected a list of {{from, value}}"
        )
    if not isinstance(row[name], list):
        raise malformed(f"{name} is a {type(row[name]).__name__}, expected a list of {{from, value}}")
    return [sharegpt_turn(turn, f"message {index}") for index, turn in enumerate(row[name])]


def sharegpt_turn(turn: Any, where: str) -> Message:
    """Return the message of one {from, value} turn."""
    if not isinstance(turn, dict):
        raise malformed(f"{where} is a {type(turn).__name__}, expected an object {{from, value}}")
    speaker = turn.get("from")
    if speaker not in _SHAREGPT_ROLES:
        known = ", ".join(_SHAREGPT_ROLES)
        raise malformed(f"{where}: from {speaker!r}, expected one of {known}")
    value = check_text(turn.get("value"), f"{where} ({speaker}): value")
    message: Message = {"role": _SHAREGPT_ROLES[speaker], "content": value}
    if speaker == "function_call":
        message = {"role": "assistant", "content": "", "tool_calls": _calls(value, where)}
    return message | {key: turn[key] for key in ("weight", "reasoning_content") if turn.get(key) is not None}


def _calls(value: str, where: str) -> list[Any]:
    try:
        calls = json.loads(value)
    except ValueError as error:
        raise malformed(
            f"{where} (function_call): value is not JSON ({error}), expected {{name, arguments}}"
        ) from error
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise malformed(f"{where} (function_call): value holds no {{name, arguments}}")
    return [{"type": "function", "function": call} for call in calls]


def with_system(row: Row, messages: Any) -> Any:
    """Return the messages behind the text of the row's `system` column, unless they begin with a system message.

    What is no list of messages is returned as it is: checking the turns says so.
    """
    system = row.get("system")
    if system in (None, "") or not isinstance(messages, list) or not messages:
        return messages
    if isinstance(messages[0], dict) and messages[0].get("role") == "system":
        return messages
    return [{"role": "system", "content": check_text(system, "system")}, *messages]


def alpaca_question(row: Row) -> list[Message]:
    """Return the turns of `history`, and the question that `instruction` and `input` are, one of which may be empty."""
    messages: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise malformed("history: expected a list of [question, answer] pairs")
    for index, (question, answer) in enumerate(history):
        messages.append({"role": "user", "content": check_text(question, f"history {index}: question")})
        messages.append({"role": "assistant", "content": check_text(answer, f"history {index}: answer")})
    question = check_text(row["instruction"], "instruction")
    if row.get("input"):
        more = check_text(row["input"], "input")
        question = f"{question}\n{more}" if question else more
    return [*messages, {"role": "user", "content": question}]
