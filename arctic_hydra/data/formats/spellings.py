"""Turns as other programs spell them, in the OpenAI format.

Only what has one meaning is translated; the rest is left as it is, for the checks of `messages` to refuse.
"""

from __future__ import annotations

from typing import Any

from arctic_hydra.data.formats.messages import REASONING_KEYS, ROLES, Message, check_text, malformed, parse_json
from arctic_hydra.data.formats.sharegpt import OTHER_ROLES, sharegpt_turn

_TEXTS = ("text", "input_text", "output_text", None)
_THOUGHTS = ("reasoning", "thinking")
_TEXT_KEYS = ("text", "value", "content")
_NO_TEXT = frozenset({"type", "annotations", "signature", "cache_control", "id", "index"})
"""Keys of a part that hold nothing to train on."""


def openai_messages(turns: Any, where: str = "message") -> Any:
    """Return turns, or JSON text of a list of them, as messages in the OpenAI format; raises RowProblem naming a turn.

    Roles and keys of other programs are renamed, {from, value} turns read, parts of a content joined, parts with reasoning
    moved to `reasoning_content`, and a deprecated `function_call` to `tool_calls`.
    """
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        try:
            turns = parse_json(turns)
        except ValueError as error:
            raise malformed(f"{where}s are not a JSON list ({error})") from error
    if not isinstance(turns, list):
        return turns
    return [_message(turn, f"{where} {index}") for index, turn in enumerate(turns)]


def _message(turn: Any, where: str) -> Any:
    if not isinstance(turn, dict):
        return turn
    role, calls = turn.get("role"), turn.get("tool_calls")
    if role is None and turn.get("from") is not None:
        return sharegpt_turn(turn, where)
    content = turn.get("content")
    if role in ROLES and isinstance(content, str) and not turn.get("function_call") and not isinstance(calls, str):
        return turn
    message = dict(turn)
    if isinstance(role, str):
        message["role"] = OTHER_ROLES.get(role, role)
    for key in ("value", "text"):
        if content is None and turn.get(key) is not None:
            content = message["content"] = message.pop(key)
    if isinstance(content, list) and content:
        _join_parts(message, content, f"{where} ({role})")
    if turn.get("function_call"):
        _rename_call(message, f"{where} ({role})")
    elif isinstance(calls, str):
        message["tool_calls"] = _json(calls, f"{where} ({role}): tool_calls") if calls.strip() else None
    return message


def _join_parts(message: Message, parts: list[Any], where: str) -> None:
    """Set the content to the text of the parts, and `reasoning_content` to that of the reasoning before it.

    Leaves the content as it is if a part is of another kind.
    """
    texts: list[str] = []
    thoughts: list[str] = []
    for number, part in enumerate(parts):
        kind, text = _text_of_part(part)
        if text is None:
            return
        check_text(text, f"{where}: content[{number}]")
        if kind in _THOUGHTS and texts:
            raise malformed(f"{where}: a part with {kind} follows the text, expected the reasoning before the answer")
        (thoughts if kind in _THOUGHTS else texts).append(text)
    if thoughts:
        if message.get("role") != "assistant":
            raise malformed(f"{where}: has a part with reasoning, expected it in assistant messages only")
        if given := [key for key in REASONING_KEYS if message.get(key)]:
            raise malformed(f"{where}: has parts with reasoning and {given[0]}, expected one of them")
        message["reasoning_content"] = "".join(thoughts)
    message["content"] = "".join(texts)


def _text_of_part(part: Any) -> tuple[Any, str | None]:
    """Return kind and text of a part; no text for a part of another kind, or with more than a text."""
    if isinstance(part, str):
        return None, part
    kind = part.get("type") if isinstance(part, dict) else ""
    if not (kind is None or isinstance(kind, str)) or kind not in (*_TEXTS, *_THOUGHTS):
        return kind, None
    keys = (*_TEXT_KEYS, kind) if kind in _THOUGHTS else _TEXT_KEYS
    filled = {key: value for key, value in part.items() if key not in _NO_TEXT and value is not None}
    [key, *more] = [*filled] or [""]
    text = filled.get(key)
    return kind, text if key in keys and not more and isinstance(text, str) else None


def _rename_call(message: Message, where: str) -> None:
    """Move a `function_call`, OpenAI's format before `tool_calls`, to `tool_calls`."""
    call = message.pop("function_call")
    call = _json(call, f"{where}: function_call") if isinstance(call, str) else call
    if message.get("tool_calls"):
        raise malformed(f"{where}: has function_call and tool_calls, expected one of them")
    message["tool_calls"] = [{"type": "function", "function": call}]


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise malformed(f"{where} is not valid JSON ({error})") from error
