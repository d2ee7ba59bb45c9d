"""Alpaca rows: `instruction`, `input` and `output`, which Dolly calls `context` and `response`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_hydra.data.formats.messages import Message, check_text, malformed

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Row


def alpaca_question(row: Row) -> list[Message]:
    """Return the turns of `history` and the question in `instruction` and `input` (or `context`), one of which may be empty."""
    messages: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise malformed("history: expected a list of [question, answer] pairs")
    for index, (question, answer) in enumerate(history):
        messages.append({"role": "user", "content": check_text(question, f"history {index}: question")})
        messages.append({"role": "assistant", "content": check_text(answer, f"history {index}: answer")})
    question = check_text(row["instruction"], "instruction")
    name = "context" if "input" not in row and "response" in row else "input"
    if row.get(name):
        more = check_text(row[name], name)
        question = f"{question}\n{more}" if question else more
    return [*messages, {"role": "user", "content": question}]
