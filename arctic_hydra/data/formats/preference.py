"""Preference rows, read into two conversations that differ only in the last answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.formats.alpaca import alpaca_question
from arctic_hydra.data.formats.messages import (
    Chat,
    Message,
    check_chat,
    check_media,
    check_text,
    check_turns,
    columns_of,
    malformed,
    prepend_system,
    read_tools,
    text_of,
)
from arctic_hydra.data.formats.sharegpt import CONVERSATION_COLUMNS
from arctic_hydra.data.formats.spellings import openai_messages

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Row

_TURN_COLUMNS = ("messages", *CONVERSATION_COLUMNS)
_PROMPT_COLUMNS = ("prompt", *_TURN_COLUMNS)
_QUESTION_COLUMNS = ("question", "input")
_MOST_MARGIN = 3.4e38
"""Largest magnitude of a margin, which is stored in float32."""
# The transcripts of Anthropic's hh-rlhf and the sets derived from it.
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def read_preference(row: Row) -> tuple[Chat, Chat]:
    """Return the chosen and the rejected conversation, each with the prompt; see `read_answers`.

    Raises RowProblem also if the prompt differs between the answers.
    """
    chosen, rejected = read_answers(row, ("chosen", "rejected"))
    if chosen.messages[:-1] != rejected.messages[:-1]:
        raise malformed("chosen and rejected differ before their last answer; expected the same prompt in both")
    return chosen, rejected


def read_answers(row: Row, names: Sequence[str]) -> list[Chat]:
    """Return the conversation that ends with the answer in each of the columns `names`, with the prompt.

    The prompt is the beginning of the conversations, or is given in separate columns: `prompt`, `messages` or
    `conversations` (a text or turns), a `system` text, and for single answers `question`, or `instruction` and `input`.
    Texts of "Human:" and "Assistant:" turns are parsed as conversations. Raises RowProblem if the prompt is missing, or
    contradicts the conversations or another column.
    """
    check_media(row)
    sides = _read_sides(row, names)
    prompt = _prompt(row, names, sides)
    return [_conversation(row, name, prompt, side) for name, side in zip(names, sides, strict=True)]


def read_margin(row: Row) -> float:
    """Return the number in the column `margin` of a pair, NaN if there is none. Raises RowProblem for anything else."""
    margin = row.get("margin")
    if margin is None:
        return math.nan
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= _MOST_MARGIN:
        raise malformed(
            f"margin is {margin!r}, expected a finite number in the range of float32, by which the score of chosen should "
            "exceed that of rejected, or null"
        )
    return float(margin)


def _read_sides(row: Row, names: Sequence[str]) -> list[list[Message]]:
    """Return the messages of each side: whole conversations, or only the answers."""
    transcripts = [_transcript(side) if isinstance(side := row.get(name), str) else None for name in names]
    found = [transcript for transcript in transcripts if transcript]
    sides = found if len(found) == len(names) else [_read_side(row, name) for name in names]
    for name, side in zip(names, sides, strict=True):
        if (role := side[-1]["role"]) != "assistant":
            raise malformed(f"{name} ends with a {role} turn, expected the assistant's answer at its end")
    return sides


def _read_side(row: Row, name: str) -> list[Message]:
    if name not in row:
        raise malformed(
            f"no '{name}' column; got the columns {columns_of(row)}; expected '{name}', a text, a message or messages"
        )
    side = row.get(name)
    if isinstance(side, str):
        return [{"role": "assistant", "content": check_text(side, name)}]
    turns = side if isinstance(side, list) else [side]
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        raise malformed(f"{name}: expected a text, a message or a list of messages; got {type(side).__name__}")
    return _messages(turns, name)


def _messages(turns: list[Any], where: str) -> list[Message]:
    """Return turns in the OpenAI or ShareGPT format as checked messages."""
    messages: list[Message] = openai_messages(turns, where)
    check_turns(messages, where)
    return messages


def _transcript(text: str) -> list[Message] | None:
    """Return the turns of a text with "Human:" and "Assistant:" turns, None for any other text."""
    marks = list(_SPEAKER.finditer(text))
    if not marks or marks[0].start() or marks[0][1] != "Human" or len(marks) == 1:
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return [
        {"role": _SPEAKERS[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def _prompt(row: Row, names: Sequence[str], sides: list[list[Message]]) -> list[Message]:
    """Return the prompt given in separate columns: the longest one, which must contain the others.

    Empty if there is none; then the sides contain the prompt.
    """
    is_whole = all(side[0]["role"] != "assistant" and _has_user_turn(side) for side in sides)
    found = _prompt_columns(row, is_whole)
    for name, messages in list(found.items()):
        if any(
            _turn_key(messages[-1]) == _turn_key(side[-1]) for side in sides
        ):  # some sets repeat the whole chosen conversation
            found[name] = messages[:-1]
    if not any(found.values()):
        if not all(map(_has_user_turn, sides)):
            raise malformed(
                f"no prompt for {' and '.join(names)}; got the columns {columns_of(row)}; expected prompt, messages, "
                f"conversations, question or instruction as a column, or whole conversations in {'both' if len(names) > 1 else 'it'}"
            )
        return []
    longest = max(found, key=lambda name: len(found[name]))
    for name, messages in found.items():
        if not _contains_turns(found[longest], messages):
            raise malformed(
                f"columns {longest} and {name} contain different prompts; expected one prompt; remove the column that is not the prompt"
            )
    return found[longest]


def _prompt_columns(row: Row, is_whole: bool) -> dict[str, list[Message]]:
    """Return the messages of each column with a prompt; question columns are ignored for whole conversations."""
    names = [name for name in _PROMPT_COLUMNS if row.get(name)]
    if not is_whole:
        names += [name for name in _QUESTION_COLUMNS if row.get(name)]
    found = {
        name: _read_prompt_column(row[name], name, is_whole)
        for name in names
        if not (name == "input" and row.get("instruction"))
    }
    if row.get("instruction") and not is_whole:
        found["instruction"] = alpaca_question(row)
    return {name: messages for name, messages in found.items() if messages}


def _read_prompt_column(value: Any, name: str, is_whole: bool) -> list[Message]:
    """Return the messages of a prompt column; next to whole conversations it may contain something else, which is ignored."""
    if isinstance(value, list) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value):
        return _messages(value, name)
    if isinstance(value, str) and name not in _TURN_COLUMNS:
        turns = _transcript(check_text(value, name)) or [{"role": "user", "content": value}]
        return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns
    if is_whole:
        return []
    kinds = "a list of messages" if name in _TURN_COLUMNS else "a text or a list of messages"
    raise malformed(f"{name} is a {type(value).__name__}, expected {kinds}: the prompt of the answers")


def _conversation(row: Row, name: str, prompt: list[Message], side: list[Message]) -> Chat:
    """Return the conversation of a side, which repeats or continues the prompt."""
    systems = [message for message in prompt if message["role"] == "system"]
    asked = [message for message in prompt if message["role"] != "system"]
    # A side that begins with an answer continues the prompt, unless it begins like the prompt.
    compared = side[: len(asked)] if side[0]["role"] == "assistant" else side
    messages = [*systems, *side] if not _contains_turns(side, systems) else side
    if not _contains_turns(compared, asked):
        before, after = prompt[-1]["role"], side[0]["role"]
        # A prompt that ends with a question must be continued by its answer.
        if (before == "assistant") == (after == "assistant"):
            raise malformed(
                f"{name} neither repeats nor continues the prompt (the prompt ends with {before!r}, and {name} begins with "
                f"{after!r}); got the columns {columns_of(row)}; expected one prompt"
            )
        messages = [*prompt, *side]
    return check_chat(prepend_system(row, messages), read_tools(row), name)


def _has_user_turn(side: list[Message]) -> bool:
    return any(message["role"] == "user" for message in side)


def _contains_turns(messages: list[Message], part: list[Message]) -> bool:
    """Whether the messages contain the turns of `part` in sequence."""
    keys, wanted = [_turn_key(message) for message in messages], [_turn_key(message) for message in part]
    return any(keys[start : start + len(wanted)] == wanted for start in range(len(keys) - len(wanted) + 1))


def _turn_key(message: Message) -> tuple[Any, str]:
    return message["role"], text_of(message.get("content")).strip()
