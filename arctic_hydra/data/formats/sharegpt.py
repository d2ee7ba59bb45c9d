"""ShareGPT rows: turns with `from` and `value`."""

from __future__ import annotations

from typing import Any

from arctic_hydra.data.formats.messages import REASONING_KEYS, ROLES, Message, check_text, malformed, parse_json

CONVERSATION_COLUMNS = ("conversations", "conversation")
OTHER_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""OpenAI's role for each role that other programs name otherwise."""
_CALLS = ("function_call", "tool_call")
"""Turns whose value is JSON text of calls."""
_OPENAI_ROLES = {role: role for role in ROLES if role != "developer"}  # which ShareGPT does not have
_SHAREGPT_ROLES = OTHER_ROLES | _OPENAI_ROLES | dict.fromkeys(_CALLS, "assistant")


def sharegpt_turn(turn: Any, where: str) -> Message:
    """Return the message of one {from, value} turn."""
    if not isinstance(turn, dict):
        raise malformed(f"{where} is a {type(turn).__name__}, expected an object {{from, value}}")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        known = ", ".join(_SHAREGPT_ROLES)
        raise malformed(f"{where}: from {speaker!r}, expected one of {known}")
    if calls := [key for key in ("tool_calls", "function_call") if turn.get(key)]:
        raise malformed(
            f"{where} ({speaker}): has {calls[0]} beside from and value, expected calls in a turn from {_CALLS[0]}, or in messages "
            "of {role, content, tool_calls}"
        )
    key = "content" if turn.get("value") is None and turn.get("content") is not None else "value"
    value = check_text(turn.get(key), f"{where} ({speaker}): {key}")
    message: Message = {"role": _SHAREGPT_ROLES[speaker], "content": value}
    if speaker in _CALLS:
        message = {"role": "assistant", "content": "", "tool_calls": _calls(value, where, speaker)}
    return message | {key: turn[key] for key in ("weight", *REASONING_KEYS) if turn.get(key) is not None}


def _calls(value: str, where: str, speaker: str) -> list[Any]:
    try:
        calls = parse_json(value)
    except ValueError as error:
        raise malformed(f"{where} ({speaker}): value is not JSON ({error}), expected {{name, arguments}}") from error
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise malformed(f"{where} ({speaker}): value is not {{name, arguments}} or a list of these")
    return [{"type": "function", "function": call} for call in calls]
