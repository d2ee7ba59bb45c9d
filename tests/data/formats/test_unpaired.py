"""Rows with a label are read in their usual layouts, and pairs as one row of each label."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.data.formats.messages import RowProblem
from arctic_hydra.data.formats.unpaired import read_unpaired

ASKED, ANSWERED = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"completion": [ASKED, ANSWERED]},
        {"messages": [ASKED, ANSWERED]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
        {"question": "q", "answer": "a"},
        {"messages": [ASKED], "completion": ANSWERED},
        {"prompt": "q", "response": "a", "chosen": None},
    ],
)
def test_layouts(row: dict[str, Any]) -> None:
    for label, expected in ((True, 1), (False, 0), (1, 1), (0, 0), (1.0, 1)):
        [(chat, found)] = read_unpaired({**row, "label": label})
        assert (chat.messages, found) == ([ASKED, ANSWERED], expected)


def test_turns_tools_and_a_system_text_are_kept() -> None:
    turns = [ASKED, ANSWERED, ASKED, {**ANSWERED, "reasoning_content": "hm"}]
    [(chat, label)] = read_unpaired({"messages": turns, "tools": TOOLS, "system": "s", "label": False})
    assert chat.messages == [{"role": "system", "content": "s"}, *turns] and chat.tools == TOOLS and label == 0


def test_a_pair_is_an_answer_of_each_label() -> None:
    found = read_unpaired({"prompt": "q", "chosen": "a", "rejected": "b"})
    assert [(chat.messages[-1]["content"], label) for chat, label in found] == [("a", 1), ("b", 0)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q", "completion": "a"}, "no 'label' column; got the columns completion, prompt; expected 'label'"),
        ({"prompt": "q", "completion": "a", "label": "good"}, "label is 'good', expected true or 1 for a desirable"),
        ({"prompt": "q", "completion": "a", "label": "true"}, "label is 'true', expected true or 1"),
        ({"prompt": "q", "completion": "a", "label": 2}, "label is 2, expected true or 1"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "label": False}, "label is False in a row with chosen and"),
        ({"prompt": "q", "completion": "a", "label": [1]}, r"label is \[1\], expected true or 1"),
        ({"prompt": "q", "label": 1}, "no answer; got the columns label, prompt; expected one of completion"),
        ({"prompt": "q", "output": "a", "completion": "b", "label": 1}, r"several answers \(completion, output\)"),
        ({"completion": "a", "label": 1}, "no prompt for completion; .* or whole conversations in it"),
        ({"messages": [ANSWERED, ASKED], "label": 1}, "messages ends with a user turn"),
        ({"prompt": "q", "completion": 3, "label": 1}, "completion: expected a text, a message or a list of messages"),
        ({"prompt": "q", "completion": "a", "label": 1, "images": ["x"]}, "column 'images' contains 1 of them"),
    ],
)
def test_rows_without_an_answer_or_a_label_are_refused(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem, match=problem):
        read_unpaired(row)
