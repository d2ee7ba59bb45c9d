"""The forms in which people keep examples, told apart by their columns, and read into conversations or plain texts."""

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
from arctic_hydra.data.formats.sharegpt import CONVERSATION_COLUMNS, sharegpt_turns
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Row, Rows


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
        return RowFormat.preference  # whatever column beside them holds the question, see `pairs`
    found = [form for form, names in _SIGNATURES if names <= present]
    if RowFormat.alpaca in found and RowFormat.text in found:
        found.remove(RowFormat.text)  # Alpaca's own files have the same question and answer as one text beside them
    conversation = next((name for name in CONVERSATION_COLUMNS if name in present), None)
    if conversation and row[conversation] != []:  # an empty one has no form, and is malformed in either
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
    name = next((name for name in ("messages", *CONVERSATION_COLUMNS) if row.get(name) is not None), "messages")
    if row.get("system"):
        row = {**row, name: prepend_system(row, row.get(name))}
    return read_chat(row, name)


def _read_sharegpt(reading: Reading, row: Row) -> Chat:
    return check_chat(prepend_system(row, sharegpt_turns(row)), read_tools(row), "conversations")


def _read_alpaca(reading: Reading, row: Row) -> Chat:
    for name in ("instruction", "output"):
        if name not in row:
            raise malformed(f"no '{name}' column; got the columns {columns_of(row)}; expected instruction and output")
    answer = {"role": "assistant", "content": check_text(row["output"], "output")}
    return check_chat(prepend_system(row, [*alpaca_question(row), answer]), read_tools(row))


def _read_prompt_completion(reading: Reading, row: Row) -> Chat | PlainText:
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is None or completion is None:
        raise malformed(f"no 'prompt' and 'completion'; got the columns {columns_of(row)}")
    if isinstance(prompt, list) and isinstance(completion, list):
        messages = prepend_system(row, [*prompt, *completion])
        chat = check_chat(messages, read_tools(row), "prompt and completion")
        given, context = chat.weights or [1] * len(messages), len(messages) - len(completion)
        # Answers in the prompt are context: only the completion is trained on.
        chat.weights = [0] * context + given[context:]
        return chat
    if isinstance(prompt, list) or isinstance(completion, list):
        raise malformed("prompt and completion: expected two texts or two lists of messages, got one of each")
    if row.get("system"):
        raise malformed(
            "system: got a text beside a plain prompt and completion, which no chat template joins; expected prompt and "
            "completion as lists of messages, or no system"
        )
    start = len(check_text(prompt, "prompt"))
    return PlainText(prompt + check_text(completion, "completion"), start)


def _read_question_answer(reading: Reading, row: Row) -> Chat:
    messages = read_mapped(row, reading.role_mapping or QUESTION_ANSWER, reading.content_key)
    if not reading.role_mapping:  # a mapping names the column of each role itself
        messages = prepend_system(row, messages)
    return check_chat(messages, read_tools(row), "role_mapping")


def _read_text(reading: Reading, row: Row) -> PlainText:
    name = reading.text_column
    if row.get(name) is None:
        raise malformed(f"no '{name}' column; got the columns {columns_of(row)}; expected '{name}', a text")
    return PlainText(check_text(row[name], name))


def _read_preference(reading: Reading, row: Row) -> Chat:
    """Return the chosen conversation: what supervised training makes of preferences."""
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
    """Return the form of the first row that has one, among the first 100.

    Raises DataError naming the first row when none has, or when a row fits several.
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
        return RowFormat.messages  # nothing to read; the count of rows says so
    raise DataError(
        f"{rows.where(0)}: no known format; got the columns {columns_of(head[0])}; expected messages, conversations, "
        f"instruction and output, prompt and completion, question and answer, or text; set the source's role_mapping="
        f"{{user: <column>, assistant: <column>}} or format="
    )
