"""Row formats, detected from their columns, and read into conversations or plain texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.formats.alpaca import alpaca_question
from arctic_hydra.data.formats.messages import (
    Chat,
    PlainText,
    RowProblem,
    check_chat,
    check_media,
    check_text,
    columns_of,
    malformed,
    prepend_system,
    read_chat,
    read_tools,
)
from arctic_hydra.data.formats.preference import read_preference
from arctic_hydra.data.formats.role_mapping import read_mapped
from arctic_hydra.data.formats.sharegpt import CONVERSATION_COLUMNS
from arctic_hydra.data.formats.spellings import openai_messages
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Row, Rows


class RowFormat(Enum):
    """Format of a source's rows."""

    auto = "auto"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"
    question_answer = "question_answer"
    text = "text"
    preference = "preference"


QUESTION_ANSWER = {"user": "question", "assistant": "answer"}


@dataclass(frozen=True)
class Reading:
    """Settings for reading the rows of one source."""

    format: RowFormat = RowFormat.auto
    role_mapping: dict[str, Any] = field(default_factory=dict)
    content_key: str | None = None
    text_column: str = "text"
    detected: bool = False
    """Whether the format was detected from the rows; then a row in another format is an error."""

    def read(self, row: Row) -> Chat | PlainText:
        """Return the example in `row`; raises RowProblem if it is invalid or has another format than the others."""
        if self.detected:
            found = detect(row)
            if found not in (None, self.format):
                raise mixed(row, found, self.format)
        if self.format is not RowFormat.text and not self.role_mapping:  # both name the columns that are used
            check_media(row)
        return _READERS[self.format](self, row)


def mixed(row: Row, found: RowFormat | None, expected: RowFormat) -> Exception:
    """Return the problem of a row whose format differs from that of the previous rows; it is never dropped silently."""
    problem = malformed(
        f"mixed schemas: this row has the format {found.value if found else 'unknown'} (columns {columns_of(row)}), but "
        f"the previous rows have the format {expected.value}; expected one format per source; make them two sources, or "
        f"set the source's format="
    )
    problem.reason = "mixed"
    return problem


def detect(row: Row) -> RowFormat | None:
    """Return the format of a row by its columns, None if it is unknown.

    Raises RowProblem if several formats match.
    """
    present = {name for name, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= present:
        return RowFormat.preference  # any other column may contain the prompt, see `formats.preference`
    found = [form for form, names in _SIGNATURES if names <= present]
    if RowFormat.alpaca in found and RowFormat.text in found:
        found.remove(RowFormat.text)  # the original Alpaca files repeat question and answer in a text column
    conversation = next((name for name in CONVERSATION_COLUMNS if name in present), None)
    if conversation and row[conversation] != []:  # an empty one is malformed in any format
        found.append(_conversation_format(row[conversation]))
    if len(found) > 1:
        names = ", ".join(form.value for form in found)
        problem = malformed(f"the columns {columns_of(row)} fit several formats ({names}); set the source's format=")
        problem.reason = "mixed"
        raise problem
    return found[0] if found else RowFormat.alpaca if {"instruction", "response"} <= present else None


_SIGNATURES: list[tuple[RowFormat, set[str]]] = [
    (RowFormat.messages, {"messages"}),
    (RowFormat.alpaca, {"instruction", "output"}),
    (RowFormat.prompt_completion, {"prompt", "completion"}),
    (RowFormat.question_answer, {"question", "answer"}),
    (RowFormat.text, {"text"}),
]


_PAIRS = (
    ("query", "response"),
    ("problem", "solution"),
    ("prompt", "response"),
    ("question", "response"),
    ("input", "output"),
)
"""Usual names of a question and its answer, of which only a mapping says that a chat template renders them."""


def _conversation_format(value: Any) -> RowFormat:
    first = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}
    return RowFormat.messages if "role" in first else RowFormat.sharegpt


def _read_messages(reading: Reading, row: Row) -> Chat:
    name = next((name for name in ("messages", *CONVERSATION_COLUMNS) if row.get(name) is not None), "messages")
    return read_chat({**row, name: prepend_system(row, openai_messages(row.get(name)))}, name)


def _read_sharegpt(reading: Reading, row: Row) -> Chat:
    name = next((name for name in CONVERSATION_COLUMNS if row.get(name) is not None), "")
    if not name:
        raise malformed(
            f"no 'conversations' column; got the columns {columns_of(row)}; expected a list of {{from, value}}"
        )
    turns = openai_messages(row[name])
    if not isinstance(turns, list):
        raise malformed(f"{name} is a {type(turns).__name__}, expected a list of {{from, value}}")
    return check_chat(prepend_system(row, turns), read_tools(row), "conversations")


def _read_alpaca(reading: Reading, row: Row) -> Chat:
    output = "response" if "output" not in row and "response" in row else "output"
    for name in ("instruction", output):
        if name not in row:
            raise malformed(f"no '{name}' column; got the columns {columns_of(row)}; expected instruction and output")
    answer = {"role": "assistant", "content": check_text(row[output], output)}
    return check_chat(prepend_system(row, [*alpaca_question(row), answer]), read_tools(row))


def _read_prompt_completion(reading: Reading, row: Row) -> Chat | PlainText:
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is None or completion is None:
        raise malformed(f"no 'prompt' and 'completion'; got the columns {columns_of(row)}")
    if isinstance(prompt, list) and isinstance(completion, list):
        prompt, completion = openai_messages(prompt, "prompt"), openai_messages(completion, "completion")
        messages = prepend_system(row, [*prompt, *completion])
        chat = check_chat(messages, read_tools(row), "prompt and completion")
        given, context = chat.weights or [1] * len(messages), len(messages) - len(completion)
        # Answers in the prompt are context; only the completion is trained on.
        chat.weights = [0] * context + given[context:]
        return chat
    if isinstance(prompt, list) or isinstance(completion, list):
        raise malformed("prompt and completion: expected two texts or two lists of messages, got one of each")
    if row.get("system"):
        raise malformed(
            "system: got a text together with a plain prompt and completion, which are not rendered with a chat template; "
            "expected prompt and completion as lists of messages, or no system"
        )
    start = len(check_text(prompt, "prompt"))
    return PlainText(prompt + check_text(completion, "completion"), start)


def _read_question_answer(reading: Reading, row: Row) -> Chat:
    messages = read_mapped(row, reading.role_mapping or QUESTION_ANSWER, reading.content_key)
    if not reading.role_mapping:  # a mapping already names the column of the system text
        messages = prepend_system(row, messages)
    return check_chat(messages, read_tools(row), "role_mapping")


def _read_text(reading: Reading, row: Row) -> PlainText:
    name = reading.text_column
    if row.get(name) is None:
        raise malformed(f"no '{name}' column; got the columns {columns_of(row)}; expected '{name}', a text")
    return PlainText(check_text(row[name], name))


def _read_preference(reading: Reading, row: Row) -> Chat:
    """Return the chosen conversation, which supervised training uses of a preference."""
    return read_preference(row)[0]


_READERS: dict[RowFormat, Callable[[Reading, Row], Chat | PlainText]] = {
    RowFormat.messages: _read_messages,
    RowFormat.sharegpt: _read_sharegpt,
    RowFormat.alpaca: _read_alpaca,
    RowFormat.prompt_completion: _read_prompt_completion,
    RowFormat.question_answer: _read_question_answer,
    RowFormat.text: _read_text,
    RowFormat.preference: _read_preference,
}


def detect_format(rows: Rows) -> RowFormat:
    """Return the format of the first of 100 rows whose format is known.

    Raises DataError naming the row if there is none, or if a row fits several formats.
    """
    head = rows.take(range(min(100, len(rows))))
    for index, row in enumerate(head):
        try:
            found = detect(row)
        except RowProblem as problem:
            raise DataError(f"{rows.where(index)}: {problem}") from problem
        if found is not None:
            return found
    if not head:
        return RowFormat.messages  # there are no rows, which is reported later
    user, assistant = next((pair for pair in _PAIRS if {*pair} <= head[0].keys()), ("<column>", "<column>"))
    raise DataError(
        f"{rows.where(0)}: no known format; got the columns {columns_of(head[0])}; expected messages, conversations, "
        f"instruction and output, prompt and completion, question and answer, or text; pass "
        f"'data.sources.<name>.role_mapping={{user:{user},assistant:{assistant}}}', or the source's format="
    )
