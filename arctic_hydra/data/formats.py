"""The forms in which people keep examples, told apart by their columns, and read into conversations or plain texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from arctic_hydra.data.mapping import read_mapped
from arctic_hydra.data.messages import (
    Chat,
    Message,
    PlainText,
    check_chat,
    check_media,
    check_text,
    check_turns,
    columns_of,
    malformed,
    read_chat,
    read_tools,
)

Row = Mapping[str, Any]


class RowFormat(Enum):
    """The form of a source's rows."""

    auto = "auto"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"
    question_answer = "question_answer"
    text = "text"
    preference = "preference"


QUESTION_ANSWER = {"user": "question", "assistant": "answer"}
_CONVERSATION_COLUMNS = ("conversations", "conversation")
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


@dataclass(frozen=True)
class Reading:
    """How the rows of one source are read."""

    format: RowFormat = RowFormat.auto
    role_mapping: dict[str, Any] = field(default_factory=dict)
    content_key: str | None = None
    text_column: str = "text"
    detected: bool = False
    """Whether the format was found out from the rows; then a row in another one is an error."""

    def read(self, row: Row) -> Chat | PlainText:
        """Return the example in `row`; raises RowProblem when it is none, or has another form than the others."""
        if self.detected:
            found = detect(row)
            if found not in (None, self.format):
                raise mixed(row, found, self.format)
        if self.format is not RowFormat.text and not self.role_mapping:  # both say what of a row counts
            check_media(row)
        return _READERS[self.format](self, row)


def mixed(row: Row, found: RowFormat | None, expected: RowFormat) -> Exception:
    """Return the problem of a row whose form differs from the rows before it; never dropped silently."""
    problem = malformed(
        f"mixed schemas: this row has the form {found.value if found else 'unknown'} (columns {columns_of(row)}), but "
        f"the rows before it have the form {expected.value}; expected one form in a source; make them two sources, or "
        f"declare the source's format="
    )
    problem.reason = "mixed"
    return problem


def detect(row: Row) -> RowFormat | None:
    """Return the form of a row by its columns, None where it has none that is known.

    Raises RowProblem when it fits several.
    """
    present = {name for name, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= present:
        return RowFormat.preference  # beside them, `prompt`, `messages` or `conversations` hold the question
    found = [form for form, names in _SIGNATURES if names <= present]
    if conversation := next((name for name in _CONVERSATION_COLUMNS if name in present), None):
        found.append(_conversation_form(row[conversation]))
    if len(found) > 1:
        names = ", ".join(form.value for form in found)
        problem = malformed(
            f"the columns {columns_of(row)} fit several formats ({names}); declare the source's format="
        )
        problem.reason = "mixed"
        raise problem
    return found[0] if found else None


_SIGNATURES: list[tuple[RowFormat, set[str]]] = [
    (RowFormat.messages, {"messages"}),
    (RowFormat.alpaca, {"instruction", "output"}),
    (RowFormat.prompt_completion, {"prompt", "completion"}),
    (RowFormat.question_answer, {"question", "answer"}),
    (RowFormat.text, {"text"}),
]


def _conversation_form(value: Any) -> RowFormat:
    first = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}
    return RowFormat.messages if "role" in first else RowFormat.sharegpt


def _read_messages(reading: Reading, row: Row) -> Chat:
    names = [name for name in ("messages", *_CONVERSATION_COLUMNS) if row.get(name) is not None]
    return read_chat(row, names[0] if names else "messages")


def _read_sharegpt(reading: Reading, row: Row) -> Chat:
    turns = _with_system(row, _sharegpt_turns(row))
    return check_chat(turns, read_tools(row), "conversations")


def _sharegpt_turns(row: Row) -> list[Message]:
    name = next((name for name in _CONVERSATION_COLUMNS if row.get(name) is not None), None)
    if name is None:
        raise malformed(
            f"no 'conversations' column; got the columns {columns_of(row)}; expected a list of {{from, value}}"
        )
    if not isinstance(row[name], list):
        raise malformed(f"{name} is a {type(row[name]).__name__}, expected a list of {{from, value}}")
    return [_sharegpt_turn(turn, f"message {index}") for index, turn in enumerate(row[name])]


def _sharegpt_turn(turn: Any, where: str) -> Message:
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


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    system = row.get("system")
    if system in (None, ""):
        return messages
    return [{"role": "system", "content": check_text(system, "system")}, *messages]


def _read_alpaca(reading: Reading, row: Row) -> Chat:
    for name in ("instruction", "output"):
        if name not in row:
            raise malformed(f"no '{name}' column; got the columns {columns_of(row)}; expected instruction and output")
    messages: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise malformed("history: expected a list of [question, answer] pairs")
    for index, (question, answer) in enumerate(history):
        messages.append({"role": "user", "content": check_text(question, f"history {index}: question")})
        messages.append({"role": "assistant", "content": check_text(answer, f"history {index}: answer")})
    question = check_text(row["instruction"], "instruction")
    if row.get("input"):
        question = f"{question}\n{check_text(row['input'], 'input')}"
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": check_text(row["output"], "output")})
    return check_chat(_with_system(row, messages), read_tools(row))


def _read_prompt_completion(reading: Reading, row: Row) -> Chat | PlainText:
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is None or completion is None:
        raise malformed(f"no 'prompt' and 'completion'; got the columns {columns_of(row)}")
    if isinstance(prompt, list) and isinstance(completion, list):
        chat = check_chat([*prompt, *completion], read_tools(row), "prompt and completion")
        given = chat.weights or [1] * len(chat.messages)
        # Answers in the prompt are context: only the completion is trained on.
        chat.weights = [0] * len(prompt) + given[len(prompt) :]
        return chat
    if isinstance(prompt, list) or isinstance(completion, list):
        raise malformed("prompt and completion: expected two texts or two lists of messages, got one of each")
    start = len(check_text(prompt, "prompt"))
    return PlainText(prompt + check_text(completion, "completion"), start)


def _read_question_answer(reading: Reading, row: Row) -> Chat:
    messages = read_mapped(row, reading.role_mapping or QUESTION_ANSWER, reading.content_key)
    return check_chat(messages, read_tools(row), "role_mapping")


def _read_text(reading: Reading, row: Row) -> PlainText:
    name = reading.text_column
    if row.get(name) is None:
        raise malformed(f"no '{name}' column; got the columns {columns_of(row)}; expected '{name}', a text")
    return PlainText(check_text(row[name], name))


def _read_preference(reading: Reading, row: Row) -> Chat:
    """Return the chosen conversation: what supervised training makes of preferences."""
    return read_preference(row)[0]


def read_preference(row: Row) -> tuple[Chat, Chat]:
    """Return the chosen and the rejected conversation, each with the prompt.

    The prompt is explicit (`prompt`, or `conversations` as in ShareGPT), or what both conversations begin with.
    """
    check_media(row)
    sides = [_preference_side(row, name) for name in ("chosen", "rejected")]
    prompt = _preference_prompt(row)
    # Whole conversations repeat the prompt (or have it implied); answers alone need it.
    whole = [side if len(side) > 1 or not prompt else [*prompt, *side] for side in sides]
    chats = [check_chat(messages, read_tools(row), "chosen/rejected") for messages in whole]
    if chats[0].messages[:-1] != chats[1].messages[:-1]:
        raise malformed("chosen and rejected differ before their last answer; expected the same prompt in both")
    return chats[0], chats[1]


def _preference_side(row: Row, name: str) -> list[Message]:
    side = row.get(name)
    if isinstance(side, str):
        return [{"role": "assistant", "content": side}]
    turns = side if isinstance(side, list) else [side]
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        raise malformed(f"{name}: expected a text, a message or a list of messages; got {type(side).__name__}")
    return [_sharegpt_turn(turn, f"{name} {index}") if "from" in turn else turn for index, turn in enumerate(turns)]


def _preference_prompt(row: Row) -> list[Message]:
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return _with_system(row, [{"role": "user", "content": prompt}])
    if isinstance(prompt, list):
        check_turns(prompt, "prompt")
        return prompt
    named = any(row.get(name) is not None for name in _CONVERSATION_COLUMNS)
    return _with_system(row, _sharegpt_turns(row)) if named else []


_READERS: dict[RowFormat, Callable[[Reading, Row], Chat | PlainText]] = {
    RowFormat.messages: _read_messages,
    RowFormat.sharegpt: _read_sharegpt,
    RowFormat.alpaca: _read_alpaca,
    RowFormat.prompt_completion: _read_prompt_completion,
    RowFormat.question_answer: _read_question_answer,
    RowFormat.text: _read_text,
    RowFormat.preference: _read_preference,
}
