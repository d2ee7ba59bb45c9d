"""Conversations from columns and paths that role_mapping names."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.data.formats.messages import Chat, RowProblem
from arctic_hydra.data.formats.reading import Reading, RowFormat
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import FieldError

QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


PATHS = {"system": "turns.who.sys", "user": "turns.who.me", "assistant": ["turns.who.you", "answer"]}


def test_role_paths_keep_every_turn_in_order() -> None:
    who = ["sys", "me", "you", "me", "you", "me"]
    row = {"turns": [{"who": name, "text": f"{name} {index}"} for index, name in enumerate(who)], "answer": "last"}
    read = Reading(RowFormat.question_answer, PATHS).read(row)
    assert isinstance(read, Chat)
    assert [(message["role"], message["content"]) for message in read.messages] == [
        ("system", "sys 0"), ("user", "me 1"), ("assistant", "you 2"), ("user", "me 3"), ("assistant", "you 4"),
        ("user", "me 5"), ("assistant", "last"),
    ]  # fmt: skip


def test_a_role_that_is_no_text_is_not_mapped() -> None:
    with pytest.raises(
        RowProblem, match=r"turns 0: who is \['me'\], which role_mapping does not map; mapped: sys, me, you"
    ):
        Reading(RowFormat.question_answer, PATHS).read({"turns": [{"who": ["me"], "text": "q"}], "answer": "a"})


def test_tool_turns_are_an_error_or_kept_never_lost() -> None:
    turns = [("user", "q"), ("assistant", "c"), ("tool", "t"), ("assistant", "a")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    mapping = {"user": "messages.role.user", "assistant": "messages.role.assistant"}
    with pytest.raises(
        RowProblem, match="messages 2: role is 'tool', which role_mapping does not map; mapped: user, a"
    ):
        Reading(RowFormat.question_answer, mapping).read(row)
    read = Reading(RowFormat.question_answer, {**mapping, "tool": "messages.role.tool"}).read(row)
    assert isinstance(read, Chat) and [message["role"] for message in read.messages] == [role for role, _ in turns]


def test_columns_by_role_leave_out_empty_system_texts() -> None:
    reading = Reading(RowFormat.question_answer, {"system": "rules", "user": "problem", "assistant": "solution"})
    row = {"rules": "", "problem": "q", "solution": "a"}
    read = reading.read(row)
    assert isinstance(read, Chat) and read.messages == [QUESTION, ANSWER]
    with pytest.raises(
        RowProblem, match="no 'solution' column, which role_mapping names; got the columns problem, rules"
    ):
        reading.read({"rules": "", "problem": "q"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"role_mapping": {"user": "q"}}, "role_mapping: got no assistant"),
        ({"role_mapping": {"human": "q", "assistant": "a"}}, "role_mapping: got the role 'human', expected one of system,"),
        ({"role_mapping": {"user": "a.b", "assistant": "a"}}, "got 'a.b' for user, expected a column or a path array.field"),
        ({"role_mapping": {"user": "a.b.c", "assistant": "a.d.e"}}, "got a.d together with a.b, expected one field"),
        ({"role_mapping": {"assistant": "a"}, "format": RowFormat.text}, "got a mapping together with format=text"),
        ({"content_key": "text"}, "content_key: has no effect without a path"),
    ],
)  # fmt: skip
def test_refused_mappings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        JsonSource(path="x", **fields)
