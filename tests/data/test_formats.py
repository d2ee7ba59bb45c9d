# ruff: noqa: E501 (tables of rows and messages)
"""Each form of rows: told by its columns, read into the same conversations, and strict about what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.formats.messages import Chat, PlainText, RowProblem
from arctic_hydra.data.formats.preference import read_preference
from arctic_hydra.data.formats.reading import Reading, RowFormat, detect
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.tokenized import Malformed
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError, FieldError
from tests.data.samples import chat, factory, make_tokenizer, shared, write_lines

TOOL = {"name": "weather", "description": "Looks out", "parameters": {"type": "object", "properties": {}}}
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}  # fmt: skip
FORMS: list[tuple[RowFormat, dict[str, Any], list[dict[str, Any]]]] = [
    (RowFormat.messages, {"messages": [SYSTEM, QUESTION, ANSWER], "prompt": "q", "prompt_id": "1"}, [SYSTEM, QUESTION, ANSWER]),
    (RowFormat.messages, {"conversation": [QUESTION, ANSWER]}, [QUESTION, ANSWER]),
    (RowFormat.sharegpt, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}, [SYSTEM, QUESTION, ANSWER]),
    (
        RowFormat.sharegpt,
        {"conversations": [
            {"from": "system", "value": "s"}, {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "{}"}, {"from": "gpt", "value": "a"},
        ]},
        [SYSTEM, QUESTION, CALL, {"role": "tool", "content": "{}"}, ANSWER],
    ),
    (RowFormat.sharegpt, {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "other"}, [SYSTEM, QUESTION, ANSWER]),
    (RowFormat.messages, {"messages": [QUESTION, ANSWER], "system": "s"}, [SYSTEM, QUESTION, ANSWER]),
    (RowFormat.messages, {"messages": [SYSTEM, QUESTION, ANSWER], "system": "other"}, [SYSTEM, QUESTION, ANSWER]),
    (RowFormat.messages, {"conversations": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}]}, [QUESTION, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]),
    (RowFormat.alpaca, {"instruction": "q", "input": "", "output": "a"}, [QUESTION, ANSWER]),
    (RowFormat.alpaca, {"instruction": "", "input": "q", "output": "a"}, [QUESTION, ANSWER]),
    (RowFormat.alpaca, {"instruction": "q", "input": "", "output": "a", "text": "Below is an instruction ... q ... a"}, [QUESTION, ANSWER]),
    (
        RowFormat.alpaca,
        {"instruction": "q2", "input": "i", "output": "a2", "system": "s", "history": [["q", "a"]]},
        [SYSTEM, QUESTION, ANSWER, {"role": "user", "content": "q2\ni"}, {"role": "assistant", "content": "a2"}],
    ),
    (RowFormat.prompt_completion, {"prompt": [SYSTEM, QUESTION], "completion": [ANSWER]}, [SYSTEM, QUESTION, ANSWER]),
    (RowFormat.prompt_completion, {"prompt": [QUESTION], "completion": [ANSWER], "system": "s"}, [SYSTEM, QUESTION, ANSWER]),
    (RowFormat.question_answer, {"question": "q", "answer": "a"}, [QUESTION, ANSWER]),
    (RowFormat.question_answer, {"question": "q", "answer": "a", "system": "s"}, [SYSTEM, QUESTION, ANSWER]),
    (RowFormat.preference, {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, {**ANSWER, "content": "b"}], "messages": []}, [QUESTION, ANSWER]),
    (RowFormat.preference, {"prompt": "q", "chosen": "a", "rejected": "b"}, [QUESTION, ANSWER]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "row", "messages"), FORMS, ids=[f"{form.value}{n}" for n, (form, _, _) in enumerate(FORMS)])  # fmt: skip
def test_forms_are_told_by_columns_and_read_alike(
    form: RowFormat, row: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    assert detect(row) is form
    assert detect({**row, "unused": None, "completion": row.get("completion")}) is form, "a column of null is no column"
    for reading in (Reading(form), Reading(form, detected=True)):
        read = reading.read(row)
        assert isinstance(read, Chat) and read.messages == messages


def test_plain_prompts_and_texts_need_no_template() -> None:
    assert Reading(RowFormat.prompt_completion).read({"prompt": "ab", "completion": "c"}) == PlainText("abc", 2)
    assert Reading(RowFormat.text).read({"text": "abc", "id": 1}) == PlainText("abc")
    assert detect({"text": "abc"}) is RowFormat.text


def test_answers_in_a_prompt_are_context() -> None:
    read = Reading(RowFormat.prompt_completion).read({"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]})
    assert isinstance(read, Chat) and read.weights == [0, 0, 0, 1]
    row = {"system": "s", "prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]}
    read = Reading(RowFormat.prompt_completion).read(row)
    assert isinstance(read, Chat) and read.weights == [0, 0, 0, 0, 1]


PATHS = {"system": "turns.who.sys", "user": "turns.who.me", "assistant": ["turns.who.you", "answer"]}


def test_b1_w5_role_paths_keep_every_turn_in_order() -> None:
    who = ["sys", "me", "you", "me", "you", "me"]
    row = {"turns": [{"who": name, "text": f"{name} {index}"} for index, name in enumerate(who)], "answer": "last"}
    read = Reading(RowFormat.question_answer, PATHS).read(row)
    assert isinstance(read, Chat)
    assert [(message["role"], message["content"]) for message in read.messages] == [
        ("system", "sys 0"), ("user", "me 1"), ("assistant", "you 2"), ("user", "me 3"), ("assistant", "you 4"),
        ("user", "me 5"), ("assistant", "last"),
    ]  # fmt: skip


def test_b1_tool_turns_are_an_error_or_kept_never_lost() -> None:
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


BAD: list[tuple[RowFormat, dict[str, Any], str]] = [
    (RowFormat.sharegpt, {"conversations": "x"}, "conversations is a str, expected a list of {from, value}"),
    (RowFormat.sharegpt, {"text": "x"}, "no 'conversations' column; got the columns text"),
    (RowFormat.sharegpt, {"conversations": [{"from": "alien", "value": "x"}]}, "message 0: from 'alien', expected one of human,"),
    (RowFormat.sharegpt, {"conversations": [{"from": "gpt", "value": None}]}, r"message 0 \(gpt\): value is null, expected a text"),
    (RowFormat.sharegpt, {"conversations": [{"from": "gpt", "value": [["x"]]}]}, "value is list, expected a text"),
    (RowFormat.sharegpt, {"conversations": [{"from": "function_call", "value": "f(1)"}]}, r"\(function_call\): value is not JSON"),
    (RowFormat.sharegpt, {"conversations": [{"from": "function_call", "value": "[1]"}]}, "holds no {name, arguments}"),
    (RowFormat.sharegpt, {"conversations": [{"from": "human", "value": "x"}], "tools": "[", "system": 1}, "system is int, expected a text"),
    (RowFormat.alpaca, {"instruction": "x"}, "no 'output' column; got the columns instruction"),
    (RowFormat.alpaca, {"instruction": "x", "output": None}, "output is null, expected a text"),
    (RowFormat.alpaca, {"instruction": "x", "output": "y", "history": ["z"]}, r"history: expected a list of \[question, answer\]"),
    (RowFormat.prompt_completion, {"prompt": "x"}, "no 'prompt' and 'completion'; got the columns prompt"),
    (RowFormat.prompt_completion, {"prompt": "x", "completion": [ANSWER]}, "two texts or two lists of messages"),
    (RowFormat.prompt_completion, {"prompt": "x", "completion": "y", "system": "s"}, "system: got a text beside a plain prompt and completion"),
    (RowFormat.question_answer, {"question": "q", "answer": "a", "system": 3}, "system is int, expected a text"),
    (RowFormat.text, {"text": 3}, "text is int, expected a text"),
    (RowFormat.text, {"text": "a\0b"}, "text holds a NUL character at place 1"),
    (RowFormat.messages, {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text"}]}]}, r"content is list \(with image parts; this trains on text only\)"),
    (RowFormat.messages, {"messages": [QUESTION, {**ANSWER, "weight": 0.5}]}, "message 1: weight is 0.5, expected 0"),
    (RowFormat.messages, {"messages": [QUESTION, {**ANSWER, "reasoning": ["x"]}]}, r"\(assistant\): reasoning is list, expected a text"),
    (RowFormat.messages, {"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "arguments of a tool call are not JSON"),
    (RowFormat.messages, {"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]}, "message 1: the arguments of a tool call are a list, expected an object"),
    (RowFormat.messages, {"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "message 1: a tool call has no name, expected {function: {name, arguments}}"),
    (RowFormat.messages, {"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"function": "f"}]}]}, "message 1: a tool call has no name"),
    (RowFormat.messages, {"messages": [QUESTION, {**ANSWER, "function_call": {"name": "f"}}]}, "function_call is OpenAI's former form, expected tool_calls"),
    (RowFormat.messages, {"messages": [QUESTION, ANSWER], "tools": "[}"}, "tools is str, expected a list of JSON schemas or JSON"),
    (RowFormat.text, {"text": "é\ud83d"}, r"text holds \\ud83d at place 1, half of a character that was cut in two"),
    (RowFormat.sharegpt, {"conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}], "images": ["x.png"]}, "column 'images' holds 1 of them, but this trains on text only"),
    (RowFormat.messages, {"messages": [QUESTION, ANSWER], "image": {"bytes": b"x"}}, "column 'image' holds one, but this trains on text only"),
    (RowFormat.preference, {"prompt": "q", "chosen": "a", "rejected": "b", "videos": ["x"]}, "column 'videos' holds 1 of them"),
    (RowFormat.preference, {"prompt": "q", "chosen": 1, "rejected": "b"}, "chosen: expected a text, a message or a list"),
    (RowFormat.preference, {"chosen": [QUESTION, ANSWER], "rejected": [{**QUESTION, "content": "other"}, ANSWER]}, "differ before their last answer"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "row", "message"), BAD)
def test_bad_rows_say_what_is_wrong(form: RowFormat, row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowProblem, match=message) as caught:
        Reading(form).read(row)
    assert caught.value.reason == "malformed"


def test_a_call_without_arguments_is_one_with_none() -> None:
    for call in ({"name": "f"}, {"name": "f", "arguments": None}, {"name": "f", "arguments": " "}):
        messages = [QUESTION, {"role": "assistant", "tool_calls": [{"function": call}], "function_call": None}]
        read = Reading(RowFormat.messages).read({"messages": messages})
        assert isinstance(read, Chat)
        assert read.messages[1]["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]


def test_columns_of_media_may_be_empty_or_beside_what_is_named() -> None:
    row = {"question": "q", "answer": "a", "images": ["x.png"]}
    mapping = {"user": "question", "assistant": "answer"}
    read = Reading(RowFormat.question_answer, mapping).read(row)
    assert read == Reading(RowFormat.question_answer).read({**row, "images": []})
    assert Reading(RowFormat.text).read({"text": "a", "image": "x.png"}) == PlainText("a")


def test_tools_reach_the_template_in_the_openai_form(tmp_path: Path, tokenizer: Any) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = [{"conversations": turns, "tools": json.dumps([TOOL])}, {"conversations": turns, "tools": ""}]
    store = factory(write_lines(tmp_path / "t.jsonl", rows)).process("train", tokenizer, World())
    first, second = (tokenizer.decode(store.ids(index)) for index in (0, 1))
    assert '"type": "function", "function": {"name": "weather"' in first and "weather" not in second


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_reach_the_template_under_its_own_name(tmp_path: Path, key: str) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}"
        "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    row = {"messages": [QUESTION, {**ANSWER, key: "hm"}]}
    tokenizer = make_tokenizer(template)
    store = factory(write_lines(tmp_path / "t.jsonl", [row])).process("train", tokenizer, World())
    assert tokenizer.decode(store.ids(0)[store.mask(0).astype(bool)]) == "<think>hm</think>a<|im_end|>"


def test_mixed_schemas_name_the_line_and_are_never_dropped(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "mixed.jsonl", [chat("q", "a"), {"instruction": "x", "output": "y"}])
    for malformed in Malformed:
        message = (
            r"data\.sources\.mine: .*mixed\.jsonl:2: mixed schemas: this row has the form alpaca \(columns instruction, "
            r"output\), but the rows before it have the form messages; .*make them two sources"
        )
        with pytest.raises(DataError, match=message):
            factory(path, malformed=malformed).process("train", tokenizer, World())


@pytest.mark.parametrize("first", [chat("q", "a")["messages"], [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]])  # fmt: skip
def test_an_empty_conversation_is_malformed_in_either_form(tmp_path: Path, tokenizer: Any, first: list[Any]) -> None:
    path = write_lines(tmp_path / "e.jsonl", [{"conversations": turns} for turns in ([], first, [])])
    store = factory(path, malformed=Malformed.drop).process("train", tokenizer, World())
    assert store.rows.tolist() == [1] and store.report["mine"]["dropped"] == {"malformed": 2}
    with pytest.raises(DataError, match=r"e\.jsonl:1: conversations is empty, expected at least one question"):
        factory(path).process("train", tokenizer, World())


def test_rows_that_fit_several_forms_need_a_declaration(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "both.jsonl", [{**chat("q", "a"), "text": "t"}])
    with pytest.raises(
        DataError, match=r"both\.jsonl:1: the columns messages, text fit several formats \(messages, text"
    ):
        factory(path).process("train", tokenizer, World())
    source = JsonSource(path=str(path), format=RowFormat.text)
    store = factory(path, sources={"mine": source}).process("train", tokenizer, World())
    assert tokenizer.decode(store.ids(0)) == "t<|im_end|>"


def test_unknown_columns_say_what_is_known(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "odd.jsonl", [{"a": 1}])
    with pytest.raises(
        DataError, match=r"odd\.jsonl:1: no known format; got the columns a; expected messages,.*role_map"
    ):
        factory(path).process("train", tokenizer, World())


def test_preferences_are_refused_unless_declared(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(
        DataError, match=r"p\.jsonl:1: the rows are preferences .*format=preference to train on the chosen"
    ):
        factory(path).process("train", tokenizer, World())
    source = JsonSource(path=str(path), format=RowFormat.preference)
    store = factory(path, sources={"mine": source}).process("train", tokenizer, World())
    assert tokenizer.decode(store.ids(0)[store.mask(0).astype(bool)]) == "a<|im_end|>"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"role_mapping": {"user": "q"}}, "role_mapping: got no place for assistant"),
        ({"role_mapping": {"human": "q", "assistant": "a"}}, "role_mapping: got the role 'human', expected one of system,"),
        ({"role_mapping": {"user": "a.b", "assistant": "a"}}, "got 'a.b' for user, expected a column or a path array.field"),
        ({"role_mapping": {"user": "a.b.c", "assistant": "a.d.e"}}, "got a.d beside a.b, expected one field"),
        ({"role_mapping": {"assistant": "a"}, "format": RowFormat.text}, "got a mapping beside format=text"),
        ({"content_key": "text"}, "content_key: has no effect without a path"),
    ],
)  # fmt: skip
def test_refused_mappings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        JsonSource(path="x", **fields)


def test_the_reading_is_part_of_the_key(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "qa.jsonl", [{"question": "q", "answer": "a", "other": "o"}])
    keys = set()
    for fields in (
        {},
        {"format": RowFormat.question_answer},
        {"role_mapping": {"user": "other", "assistant": "answer"}},
    ):
        sources = {"mine": JsonSource(path=str(path), **fields)}
        keys.add(factory(path, sources=sources).process("train", tokenizer, World()).key)
    assert len(keys) == 3


REAL: list[tuple[str, dict[str, Any], int, int]] = [
    ("chat/test_sft.jsonl", {}, 1319, 1),
    ("alpaca/alpaca_en_demo.json", {}, 999, 1),
    ("toolcall/glaive_toolcall_en_demo.json", {}, 300, 2),
    ("gsm8k/test.jsonl", {"role_mapping": {"user": "question", "assistant": "answer"}}, 1319, 1),
    ("dpo/dpo_en_demo.json", {"format": RowFormat.preference}, 300, 1),
]


@pytest.mark.parametrize(("name", "fields", "rows", "turns"), REAL, ids=[name for name, *_ in REAL])
def test_real_files(name: str, fields: dict[str, Any], rows: int, turns: int, tokenizer: Any) -> None:
    path = shared(name)
    sources = {"mine": JsonSource(path=str(path), sample_count=300, **fields)}
    store = factory(path, sources=sources, max_length="32Ki").process("train", tokenizer, World())
    report = store.report["mine"]
    assert report["kept"] + sum(report["dropped"].values()) == min(rows, 300)
    assert report["kept"] > 290 and report["dropped"].keys() <= {"no_supervised_token"}
    assert set(report["stops"]) == {str(tokenizer.eos_token_id)}
    assert sum(report["stops"].values()) >= turns * report["kept"]


def test_real_preferences_share_their_prompt() -> None:
    rows = json.loads(shared("dpo/dpo_en_demo.json").read_text())
    for row in rows:
        chosen, rejected = read_preference(row)
        assert chosen.messages[-1]["content"] == row["chosen"]["value"]
        assert rejected.messages[-1]["content"] == row["rejected"]["value"]
        assert chosen.messages[:-1] == rejected.messages[:-1] and len(chosen.messages) == len(row["conversations"]) + 1
