# ruff: noqa: E501 (tables of rows and messages)
"""Conversations in the OpenAI format: each message is checked before a template renders it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.formats import messages
from arctic_hydra.data.formats.messages import Chat, RowProblem
from arctic_hydra.data.formats.reading import Reading, RowFormat
from arctic_hydra.data.prepare.truncation import Malformed
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.samples import chat, factory, geometry, make_tokenizer, write_lines

QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


TOOL = {"name": "weather", "description": "Looks out", "parameters": {"type": "object", "properties": {}}}


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"body": "x", "id": 1}, "no 'messages' column; got the columns body, id; expected 'messages'"),
    "messages a text": ({"messages": "hello"}, "messages is a str, expected a list"),
    "no message": ({"messages": []}, "messages is empty"),
    "message a text": ({"messages": ["hello"]}, "message 0 is a str, expected an object"),
    "unknown role": (
        {"messages": [{"role": "robot", "content": "x"}]},
        "message 0: role 'robot', expected one of system, ",
    ),
    "no role": ({"messages": [{"value": "x"}]}, "role None, expected one of system, "),
    "tool first": (
        {"messages": [QUESTION, {"role": "tool", "content": ""}, ANSWER]},
        "message 1: role 'tool' before the first assistant message",
    ),
    "null content": (
        {"messages": [QUESTION, {"role": "assistant", "content": None}]},
        r"message 1 \(assistant\): content is null, expected a text",
    ),
    "content missing": ({"messages": [{"role": "user", "body": "q"}]}, r"content is missing \(keys: body, role\)"),
    "content a list": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "content is list, expected a text",
    ),
    "a part of unknown kinds": (
        {"messages": [{"role": "user", "content": [{"type": []}, {"type": {}}]}]},
        r"message 0 \(user\): content is list \(with \[\], \{\} parts; training is on text only\), expected a text",
    ),
    "tools nested deeply": (
        {"messages": [QUESTION, ANSWER], "tools": "[" * 100_000},
        r"tools is str, expected a list of JSON schemas or JSON text of one \(it is nested too deeply\)",
    ),
    "arguments nested deeply": (
        {"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 100_000}]}]},
        r"message 1: the arguments of a tool call are not JSON \(it is nested too deeply\)",
    ),
    "half a character in a part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q\ud83d"}]}, ANSWER]},
        r"message 0 \(user\): content\[0\] contains \\ud83d at position 1",
    ),
    "half a character": (
        {"messages": [{"role": "user", "content": "q\ud83d"}, ANSWER]},
        r"message 0 \(user\): content contains \\ud83d at position 1, half of a surrogate pair, expected a text",
    ),
    "half a character in tools": (
        {"messages": [QUESTION, ANSWER], "tools": [{"name": "\ud83d"}]},
        r"the rendered chat contains \\ud83d at position \d+",
    ),
    "images": (
        {"messages": [QUESTION, ANSWER], "images": ["x.png"]},
        "column 'images' contains 1 of them, but training is",
    ),
    "no answer": ({"messages": [QUESTION]}, "no assistant message, so there is nothing to train on"),
    "tools a text": ({"messages": [QUESTION, ANSWER], "tools": "x"}, "tools is str, expected a list"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_and_may_be_dropped(name: str, tmp_path: Path, tokenizer: Any) -> None:
    row, message = BAD_ROWS[name]
    path = write_lines(tmp_path / "rows.jsonl", [chat("q", "a"), row, chat("r", "b")])
    with pytest.raises(
        DataError, match=r"data\.sources\.mine: .*rows\.jsonl:2: .*" + message + r".*pass data\.malformed=drop"
    ):
        factory(path).build(tokenizer, geometry())
    store = factory(path, malformed=Malformed.drop).process("train", tokenizer, World())
    assert store.report["mine"]["dropped"] == {"malformed": 1}
    assert store.rows.tolist() == [0, 2]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text"}]}]}, r"content is list \(with image parts; training is on text only\)"),
    ({"messages": [QUESTION, {**ANSWER, "weight": 0.5}]}, "message 1: weight is 0.5, expected 0"),
    ({"messages": [QUESTION, {**ANSWER, "reasoning": ["x"]}]}, r"\(assistant\): reasoning is list, expected a text"),
    ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "arguments of a tool call are not JSON"),
    ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]}, "message 1: the arguments of a tool call are a list, expected an object"),
    ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "message 1: a tool call has no name, expected {function: {name, arguments}}"),
    ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"function": "f"}]}]}, "message 1: a tool call has no name"),
    ({"messages": [QUESTION, ANSWER], "tools": "[}"}, "tools is str, expected a list of JSON schemas or JSON"),
    ({"messages": [QUESTION, ANSWER], "image": {"bytes": b"x"}}, "column 'image' contains one, but training is on text only"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_messages_say_what_is_wrong(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowProblem, match=message) as caught:
        Reading(RowFormat.messages).read(row)
    assert caught.value.reason == "malformed"


def test_a_text_that_no_tokenizer_can_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_CHARACTERS", 10)
    row = {"messages": [QUESTION, {"role": "assistant", "content": "a" * 11}]}
    with pytest.raises(RowProblem, match=r"message 1 \(assistant\): content has 11 characters, expected at most 10"):
        Reading(RowFormat.messages).read(row)


def test_a_call_without_arguments_has_empty_ones() -> None:
    for call in ({"name": "f"}, {"name": "f", "arguments": None}, {"name": "f", "arguments": " "}):
        messages = [QUESTION, {"role": "assistant", "tool_calls": [{"function": call}], "function_call": None}]
        read = Reading(RowFormat.messages).read({"messages": messages})
        assert isinstance(read, Chat)
        assert read.messages[1]["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]


def test_tools_reach_the_template_in_the_openai_format(tmp_path: Path, tokenizer: Any) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = [{"conversations": turns, "tools": json.dumps([TOOL])}, {"conversations": turns, "tools": ""}]
    store = factory(write_lines(tmp_path / "t.jsonl", rows)).process("train", tokenizer, World())
    first, second = (tokenizer.decode(store.ids(index)) for index in (0, 1))
    assert '"type": "function", "function": {"name": "weather"' in first and "weather" not in second


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_reaches_the_template_under_its_name(tmp_path: Path, key: str) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}"
        "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    row = {"messages": [QUESTION, {**ANSWER, key: "hm"}]}
    tokenizer = make_tokenizer(template)
    store = factory(write_lines(tmp_path / "t.jsonl", [row])).process("train", tokenizer, World())
    assert tokenizer.decode(store.ids(0)[store.mask(0).astype(bool)]) == "<think>hm</think>a<|im_end|>"
