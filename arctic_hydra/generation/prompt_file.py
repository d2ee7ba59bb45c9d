"""Reads a file of prompts: one per line, or JSON Lines of objects with `prompt` or `messages`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_hydra.data.formats.messages import Message, RowProblem, check_prompt, check_text, check_turns, read_tools
from arctic_hydra.data.formats.spellings import openai_messages
from arctic_hydra.errors import DataError

MOST_CHARACTERS = 100_000_000
"""Largest size of a file of prompts, which is read as a whole."""
JSON_LINES = ".jsonl"
"""Suffix of files with a JSON object per line."""


@dataclass(frozen=True)
class Question:
    """One prompt of a file."""

    place: str
    """File and line, for messages."""
    row: dict[str, Any]
    """The object of the line, to which the answer is added."""
    messages: list[Message]
    tools: list[Any] | None = None

    @property
    def text(self) -> str:
        """The prompt as a text, for a model that continues texts."""
        if len(self.messages) > 1 or self.messages[0]["role"] != "user":
            raise DataError(
                f"{self.place}: got messages, but the model has no chat template and continues texts; expected `prompt`, a text"
            )
        return str(self.messages[0]["content"])


def read_prompts(path: Path) -> list[Question]:
    """Return the prompts of a file, blank lines left out; raises DataError naming file and line of one that is invalid."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompts: {path} cannot be read ({error}); expected a text file in UTF-8") from error
    if len(text) > MOST_CHARACTERS:
        raise DataError(
            f"prompts: {path} has more than {MOST_CHARACTERS:,} characters; expected a smaller file; split it"
        )
    lines = text.split("\n")
    found = [_question(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"prompts: {path} has no prompts; expected one per line, or objects in a {JSON_LINES} file")
    return found


def _question(path: Path, number: int, line: str) -> Question:
    place = f"prompts: {path}:{number}"
    if path.suffix != JSON_LINES:
        prompt = line.rstrip("\r")
        return Question(place, {"prompt": prompt}, [{"role": "user", "content": prompt}])
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{place} is not valid JSON ({error}); expected an object with `prompt` or `messages`"
        ) from error
    except RecursionError as error:
        raise DataError(f"{place}: JSON nested too deeply to read; correct or remove the line") from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise DataError(
            f"{place}: expected an object with either `prompt`, a text, or `messages`, a list of {{role, content}}"
        )
    try:
        if "prompt" in row:
            return Question(place, row, [{"role": "user", "content": check_text(row["prompt"], "prompt")}])
        messages = openai_messages(row["messages"])
        check_turns(messages)
        if messages[-1]["role"] == "assistant":
            raise DataError(
                f"{place}: the last message is an answer; expected a message to answer, such as one of the user"
            )
        chat = check_prompt(messages, read_tools(row))
        return Question(place, row, chat.messages, chat.tools)
    except RowProblem as problem:
        raise DataError(f"{place}: {problem}") from problem
