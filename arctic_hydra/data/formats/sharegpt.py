"""ShareGPT rows: turns with `from` and `value`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_hydra.data.formats.messages import Message, check_text, columns_of, malformed, parse_json

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Row

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
    """Return the messages of a row's {from, value} turns; raises RowProblem naming an invalid turn."""
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
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        known = ", ".join(_SHAREGPT_ROLES)
        raise malformed(f"{where}: from {speaker!r}, expected one of {known}")
    value = check_text(turn.get("value"), f"{where} ({speaker}): value")
    message: Message = {"role": _SHAREGPT_ROLES[speaker], "content": value}
    if speaker == "function_call":
        message = {"role": "assistant", "content": "", "tool_calls": _calls(value, where)}
    return message | {key: turn[key] for key in ("weight", "reasoning_content") if turn.get(key) is not None}


def _calls(value: str, where: str) -> list[Any]:
    try:
        calls = parse_json(value)
    except ValueError as error:
        raise malformed(
            f"{where} (function_call): value is not JSON ({error}), expected {{name, arguments}}"
        ) from error
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise malformed(f"{where} (function_call): value is not {{name, arguments}} or a list of these")
    return [{"type": "function", "function": call} for call in calls]
