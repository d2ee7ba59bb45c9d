# ruff: noqa: E501 (tables of rows)
"""Rows in the spellings of other programs are read as those of OpenAI."""

from __future__ import annotations

import json
from typing import Any

import pytest

from arctic_hydra.data.formats.messages import Chat, RowProblem
from arctic_hydra.data.formats.preference import read_preference
from arctic_hydra.data.formats.reading import Reading, detect

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
R = {**A, "reasoning_content": "r"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}


def asked(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts]}, A]}


def answered(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [Q, {"role": "assistant", "content": [*parts], **more}]}


ROWS: list[tuple[dict[str, Any], list[Any]]] = [
    (asked({"type": "text", "value": "q"}), [Q, A]),
    (asked({"type": "text", "content": "q"}), [Q, A]),
    (asked({"type": "input_text", "text": "q"}), [Q, A]),
    (asked({"text": "q"}), [Q, A]),
    (asked("q"), [Q, A]),
    (answered({"type": "output_text", "text": "a", "annotations": []}), [Q, A]),
    (answered({"type": "reasoning", "value": "r"}, {"type": "text", "value": "a"}), [Q, R]),
    (answered({"type": "thinking", "thinking": "r", "signature": "x"}, {"type": "text", "text": "a"}), [Q, R]),
    (answered({"type": "reasoning", "text": None, "value": "r"}, {"type": "text", "text": "a", "value": None}), [Q, R]),
    ({"messages": json.dumps([Q, A])}, [Q, A]),
    ({"conversations": json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}])}, [Q, A]),
    ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [Q, A]),
    ({"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]}, [Q, A]),
    ({"conversations": [{"role": "user", "value": "q"}, {"role": "model", "text": "a"}]}, [Q, A]),
    ({"conversations": [{"from": "prompter", "value": "q"}, {"from": "gpt", "value": "a"}]}, [Q, A]),
    ({"conversations": [{"from": "user", "content": "q"}, {"from": "bot", "content": "a"}]}, [Q, A]),
    ({"messages": [Q, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, [Q, CALLED]),
    ({"messages": [Q, {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}]}, [Q, CALLED]),
    ({"messages": [Q, {**A, "tool_calls": " "}]}, [Q, A]),
    (
        {"messages": [Q, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}, {"role": "function", "name": "f", "content": "3"}, A]},
        [Q, CALLED, {"role": "tool", "name": "f", "content": "3"}, A],
    ),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}, {"from": "tool_response", "value": "3"}, {"from": "gpt", "value": "a"}]},
        [Q, CALLED, {"role": "tool", "content": "3"}, A],
    ),
    ({"prompt": [{"role": "human", "content": "q"}], "completion": [{"role": "gpt", "content": "a"}]}, [Q, A]),
    ({"instruction": "q", "context": "", "response": "a", "category": "x"}, [Q, A]),
    ({"instruction": "q", "context": "c", "response": "a"}, [{"role": "user", "content": "q\nc"}, A]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), ROWS)
def test_other_spellings_are_read(row: dict[str, Any], messages: list[Any]) -> None:
    found = detect(row)
    assert found is not None
    chat = Reading(found, detected=True).read(row)
    assert isinstance(chat, Chat) and chat.messages == messages


BAD: list[tuple[dict[str, Any], str]] = [
    (answered({"type": "text", "text": "a"}, {"type": "thinking", "thinking": "r"}), r"message 1 \(assistant\): a part with thinking follows the text"),
    (asked({"type": "reasoning", "text": "r"}), r"message 0 \(user\): has a part with reasoning, expected it in assistant messages only"),
    (answered({"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}, reasoning="z"), "has parts with reasoning and reasoning, expected one of them"),
    (asked({"type": "image_url", "image_url": {}}, {"type": "text", "text": "q"}), r"content is list \(with image_url parts"),
    (asked({"type": "text", "text": "q", "value": "z"}), "content is list, expected a text"),
    ({"messages": "[{"}, "messages are not a JSON list"),
    ({"messages": [Q, {**A, "function_call": "f("}]}, r"message 1 \(assistant\): function_call is not valid JSON"),
    ({"messages": [Q, {**CALLED, "function_call": {"name": "f"}}]}, "has function_call and tool_calls, expected one of them"),
    ({"messages": [Q, {**A, "tool_calls": "["}]}, r"message 1 \(assistant\): tool_calls is not valid JSON"),
    ({"messages": [Q, {"role": "tool_result", "content": "a"}]}, "message 1: role 'tool_result', expected one of"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "problem"), BAD)
def test_what_has_two_meanings_is_an_error(row: dict[str, Any], problem: str) -> None:
    found = detect(row)
    assert found is not None
    with pytest.raises(RowProblem, match=problem) as caught:
        Reading(found).read(row)
    assert caught.value.reason == "malformed"


def test_preferences_are_read_in_them_too() -> None:
    row = {"prompt": [{"role": "human", "content": "q"}], "chosen": [{"role": "gpt", "content": [{"type": "text", "value": "a"}]}], "rejected": "b"}  # fmt: skip
    chosen, rejected = read_preference(row)
    assert (chosen.messages, rejected.messages[1]["content"]) == ([Q, A], "b")
