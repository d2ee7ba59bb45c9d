"""Rows with an answer and a label, read into a conversation, and pairs, read into one conversation for each label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_hydra.data.formats.messages import Chat, columns_of, malformed
from arctic_hydra.data.formats.preference import read_answers, read_preference
from arctic_hydra.data.formats.sharegpt import CONVERSATION_COLUMNS

if TYPE_CHECKING:
    from arctic_hydra.data.rows.base import Row

_ANSWER_COLUMNS = ("completion", "response", "output", "answer")


def read_unpaired(row: Row) -> list[tuple[Chat, int]]:
    """Return each conversation of a row, and its label: 1 if its last answer is desirable, 0 if not.

    A row with `chosen` and `rejected` has two. Any other has one, of `completion`, `response`, `output` or `answer` with a
    prompt as in `read_answers`, or of whole `messages` or `conversations`; its label is in `label`. Raises RowProblem if
    the label is missing or neither true, false, 1 nor 0, if a pair has one, or if there is not exactly one answer.
    """
    label = row.get("label")
    if row.get("chosen") is not None and row.get("rejected") is not None:
        if label is not None:
            raise malformed(
                f"label is {label!r} in a row with chosen and rejected, which are a desirable and an undesirable answer already; "
                "expected a label or a pair"
            )
        return list(zip(read_preference(row), (1, 0), strict=True))
    if label is None:
        raise malformed(
            f"no 'label' column; got the columns {columns_of(row)}; expected 'label', true (or 1) for a desirable answer and "
            f"false (or 0) for an undesirable one, or pairs with chosen and rejected"
        )
    if isinstance(label, str) or label not in (0, 1):
        raise malformed(
            f"label is {label!r}, expected true or 1 for a desirable answer, false or 0 for an undesirable one"
        )
    [chat] = read_answers(row, [_answer_column(row)])
    return [(chat, int(label))]


def _answer_column(row: Row) -> str:
    found = [name for name in _ANSWER_COLUMNS if row.get(name) is not None]
    if not found:
        found = [name for name in ("messages", *CONVERSATION_COLUMNS) if row.get(name) is not None]
    if len(found) != 1:
        several = f"several answers ({', '.join(found)})" if found else "no answer"
        raise malformed(
            f"{several}; got the columns {columns_of(row)}; expected one of {', '.join(_ANSWER_COLUMNS)} with a prompt, or "
            f"messages that end with the answer"
        )
    return found[0]
