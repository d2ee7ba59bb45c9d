# ruff: noqa: E501 (tables of rows and messages)
"""ShareGPT rows: turns with `from` and `value`."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.data.formats.messages import RowProblem
from arctic_hydra.data.formats.reading import Reading, RowFormat
from arctic_hydra.data.formats.sharegpt import sharegpt_turn

BAD: list[tuple[dict[str, Any], str]] = [
    ({"conversations": "x"}, "conversations is a str, expected a list of {from, value}"),
    ({"text": "x"}, "no 'conversations' column; got the columns text"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, "message 0: from 'alien', expected one of human,"),
    ({"conversations": [{"from": ["gpt"], "value": "x"}]}, r"message 0: from \['gpt'\], expected one of human,"),
    ({"conversations": [{"from": "function_call", "value": "[" * 100_000}]}, r"value is not JSON \(it is nested too deeply\)"),
    ({"conversations": [{"from": "gpt", "value": None}]}, r"message 0 \(gpt\): value is null, expected a text"),
    ({"conversations": [{"from": "gpt", "value": [["x"]]}]}, "value is list, expected a text"),
    ({"conversations": [{"from": "function_call", "value": "f(1)"}]}, r"\(function_call\): value is not JSON"),
    ({"conversations": [{"from": "function_call", "value": "[1]"}]}, "value is not {name, arguments} or a list"),
    ({"conversations": [{"from": "gpt", "value": "x", "tool_calls": [{"name": "f"}]}]}, r"message 0 \(gpt\): has tool_calls beside from and value, expected"),
    ({"conversations": [{"from": "human", "value": "x"}], "tools": "[", "system": 1}, "system is int, expected a text"),
    ({"conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}], "images": ["x.png"]}, "column 'images' contains 1 of them, but training is on text only"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_turns_say_what_is_wrong(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowProblem, match=message) as caught:
        Reading(RowFormat.sharegpt).read(row)
    assert caught.value.reason == "malformed"


def test_weights_and_reasoning_of_turns_are_kept() -> None:
    question = sharegpt_turn({"from": "human", "value": "q", "weight": None}, "message 0")
    answer = sharegpt_turn({"from": "gpt", "value": "a", "weight": 0, "reasoning_content": "r"}, "message 1")
    assert question == {"role": "user", "content": "q"}
    assert answer == {"role": "assistant", "content": "a", "weight": 0, "reasoning_content": "r"}
    for key in ("reasoning", "thinking"):
        answer = sharegpt_turn({"from": "gpt", "value": "a", key: "r", "tool_calls": None}, "message 1")
        assert answer == {"role": "assistant", "content": "a", key: "r"}
