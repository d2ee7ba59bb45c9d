# ruff: noqa: E501 (tables of rows and messages)
"""Each row format: detected from its columns, read into the same conversations; rows in other formats are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.formats.messages import Chat, PlainText, RowProblem
from arctic_hydra.data.formats.reading import Reading, RowFormat, detect
from arctic_hydra.data.prepare.truncation import Malformed
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.samples import chat, factory, shared, write_lines

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
def test_formats_are_detected_by_columns_and_read_alike(
    form: RowFormat, row: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    assert detect(row) is form
    assert detect({**row, "unused": None, "completion": row.get("completion")}) is form, "null columns are ignored"
    for reading in (Reading(form), Reading(form, detected=True)):
        read = reading.read(row)
        assert isinstance(read, Chat) and read.messages == messages


def test_plain_prompts_and_texts_are_read_without_a_template() -> None:
    assert Reading(RowFormat.prompt_completion).read({"prompt": "ab", "completion": "c"}) == PlainText("abc", 2)
    assert Reading(RowFormat.text).read({"text": "abc", "id": 1}) == PlainText("abc")
    assert detect({"text": "abc"}) is RowFormat.text


def test_answers_in_a_prompt_are_context() -> None:
    read = Reading(RowFormat.prompt_completion).read({"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]})
    assert isinstance(read, Chat) and read.weights == [0, 0, 0, 1]
    row = {"system": "s", "prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]}
    read = Reading(RowFormat.prompt_completion).read(row)
    assert isinstance(read, Chat) and read.weights == [0, 0, 0, 0, 1]


BAD: list[tuple[RowFormat, dict[str, Any], str]] = [
    (RowFormat.prompt_completion, {"prompt": "x"}, "no 'prompt' and 'completion'; got the columns prompt"),
    (RowFormat.prompt_completion, {"prompt": "x", "completion": [ANSWER]}, "two texts or two lists of messages"),
    (RowFormat.prompt_completion, {"prompt": "x", "completion": "y", "system": "s"}, "system: got a text together with a plain prompt and completion"),
    (RowFormat.question_answer, {"question": "q", "answer": "a", "system": 3}, "system is int, expected a text"),
    (RowFormat.text, {f"c{n:06}": 1 for n in range(30_000)}, r"no 'text' column; got the columns c000000, .*, c000019 and 29,980 more; exp"),
    (RowFormat.text, {"text": 3}, "text is int, expected a text"),
    (RowFormat.text, {"text": "a\0b"}, "text contains a NUL character at position 1"),
    (RowFormat.text, {"text": "é\ud83d"}, r"text contains \\ud83d at position 1, half of a surrogate pair"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "row", "message"), BAD)
def test_bad_rows_say_what_is_wrong(form: RowFormat, row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowProblem, match=message) as caught:
        Reading(form).read(row)
    assert caught.value.reason == "malformed"


def test_media_columns_may_be_empty_or_unused() -> None:
    row = {"question": "q", "answer": "a", "images": ["x.png"]}
    mapping = {"user": "question", "assistant": "answer"}
    read = Reading(RowFormat.question_answer, mapping).read(row)
    assert read == Reading(RowFormat.question_answer).read({**row, "images": []})
    assert Reading(RowFormat.text).read({"text": "a", "image": "x.png"}) == PlainText("a")


def test_mixed_schemas_name_the_line_and_are_never_dropped(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "mixed.jsonl", [chat("q", "a"), {"instruction": "x", "output": "y"}])
    for malformed in Malformed:
        message = (
            r"data\.sources\.mine: .*mixed\.jsonl:2: mixed schemas: this row has the format alpaca \(columns instruction, "
            r"output\), but the previous rows have the format messages; .*make them two sources"
        )
        with pytest.raises(DataError, match=message):
            factory(path, malformed=malformed).process("train", tokenizer, World())


@pytest.mark.parametrize("first", [chat("q", "a")["messages"], [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]])  # fmt: skip
def test_an_empty_conversation_is_malformed_in_either_format(tmp_path: Path, tokenizer: Any, first: list[Any]) -> None:
    path = write_lines(tmp_path / "e.jsonl", [{"conversations": turns} for turns in ([], first, [])])
    store = factory(path, malformed=Malformed.drop).process("train", tokenizer, World())
    assert store.rows.tolist() == [1] and store.report["mine"]["dropped"] == {"malformed": 2}
    with pytest.raises(DataError, match=r"e\.jsonl:1: conversations is empty, expected at least one question"):
        factory(path).process("train", tokenizer, World())


def test_rows_that_fit_several_formats_need_a_setting(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "both.jsonl", [{**chat("q", "a"), "text": "t"}])
    with pytest.raises(
        DataError, match=r"both\.jsonl:1: the columns messages, text fit several formats \(messages, text"
    ):
        factory(path).process("train", tokenizer, World())
    source = JsonSource(path=str(path), format=RowFormat.text)
    store = factory(path, sources={"mine": source}).process("train", tokenizer, World())
    assert tokenizer.decode(store.ids(0)) == "t<|im_end|>"


def test_unknown_columns_list_the_known_formats(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "odd.jsonl", [{"a": 1}])
    with pytest.raises(
        DataError, match=r"odd\.jsonl:1: no known format; got the columns a; expected messages,.*<name>.role_map"
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
