"""Rows to examples: what is kept of a row, and the counts of what is not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from arctic_hydra.data.encode.bpe_cache import WordTokenizer
from arctic_hydra.data.formats.reading import Reading, RowFormat, detect_format
from arctic_hydra.data.prepare.preparer import PrepareOptions, RowPreparer, SourceRows
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.rows.base import ListRows
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.samples import (
    CHATML_TAGS_WITH_HEADER,
    CHATML_UNTAGGED,
    LLAMA_3_TOOLS,
    QWEN_3,
    QWEN_TOOLS,
    chat,
    factory,
    geometry,
    make_tokenizer,
    write_lines,
)
from tests.mutations import DEEP, TEXTS, VALUES, attempt, changed, fuzz

CUTTING = (Overlong.keep_start, Overlong.keep_end, Overlong.split)


def prepared(path: Path, tokenizer: Any, policy: Overlong, limit: int = 24, **fields: Any) -> Any:
    return factory(path, max_length=limit, overlong=policy, **fields).process("train", tokenizer, World())


LONG = ("one", "1 " * 3, "two", "2 " * 3, "three", "3 " * 3)


def test_parts_of_a_tokenizer_that_writes_bos_begin_with_it(tmp_path: Path) -> None:
    from tests.data.samples import CHATML_UNTAGGED, make_tokenizer

    tokenizer = make_tokenizer(CHATML_UNTAGGED, adds_bos=True)
    path = write_lines(tmp_path / "long.jsonl", [chat(*LONG)])
    split = prepared(path, tokenizer, Overlong.split)
    assert len(split) > 1 and split.lengths.max() <= 24
    for index in range(len(split)):
        assert (
            split.ids(index).tolist().count(tokenizer.bos_token_id) == 1
            and split.ids(index)[0] == tokenizer.bos_token_id
        )


@pytest.mark.parametrize("policy", CUTTING)
def test_rows_without_anything_trained_are_counted(policy: Overlong, tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "long.jsonl", [chat("word " * 100, "a"), chat("q", "a")])
    report = prepared(path, tokenizer, policy).report["mine"]
    assert report["dropped"] == ({"no_supervised_token": 1} if policy is Overlong.keep_start else {})
    assert report["rows"] == 2 and report["kept"] == (1 if policy is Overlong.keep_start else 2)


def test_masks_of_split_rows_keep_to_the_answers(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "long.jsonl", [chat(*LONG)])
    split = prepared(path, tokenizer, Overlong.split, train_on="last")
    assert len(split) == 1, "parts without a trained turn are no examples"
    whole = prepared(path, tokenizer, Overlong.drop, 512)
    assert split.report["mine"]["tokens_lost"] == len(whole.ids(0)) - len(split.ids(0))
    assert tokenizer.decode(split.ids(0)[split.mask(0).astype(bool)]) == LONG[-1] + "<|im_end|>"


def test_a_truncated_answer_has_no_end_token(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "long.jsonl", [chat("q", "word " * 100), chat("word " * 100, "a"), chat("q", "a")])
    store = factory(path, max_length=20, overlong=Overlong.keep_start).process("train", tokenizer, World())
    assert store.rows.tolist() == [0, 2]
    assert len(store.ids(0)) == 20 and store.mask(0)[-1] == 1
    assert store.ids(0)[-1] != tokenizer.eos_token_id
    report = store.report["mine"]
    assert report["dropped"] == {"no_supervised_token": 1} and report["truncated"] == 2 and report["tokens_lost"] > 100
    dropped = factory(path, max_length=20).process("train", tokenizer, World()).report["mine"]
    assert dropped["dropped"] == {"overlong": 2} and dropped["kept"] == 1
    with pytest.raises(
        DataError, match=r"long\.jsonl:1: \d+ tokens, more than data\.max_length=20; raise data\.max_length, or"
    ):
        factory(path, max_length=20, overlong=Overlong.error).build(tokenizer, geometry())


def test_rows_that_are_tokenized_already(tmp_path: Path) -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [8, 9], "attention_mask": [1, 1]},
        {"input_ids": [1], "labels": [1]},
    ]
    path = write_lines(tmp_path / "ids.jsonl", rows)
    sources = {"ids": JsonSource(path=str(path), process=False)}
    tokenizer = make_tokenizer(None)  # no chat template is needed
    store = factory(path, sources=sources).process("train", tokenizer, World())
    assert [store.ids(index).tolist() for index in (0, 1)] == [[5, 6, 7], [8, 9]]
    assert [store.mask(index).tolist() for index in (0, 1)] == [[0, 1, 1], [0, 1]]
    assert store.report["ids"]["dropped"] == {"no_supervised_token": 1}
    for bad, message in (
        ({"input_ids": [5, "x"]}, "requires 'input_ids', a list of token ids"),
        (
            {"input_ids": [5, len(tokenizer), 6]},
            rf"ids\.jsonl:1: input_ids\[1\] is {len(tokenizer)}, but the tokenizer has {len(tokenizer)} tokens; expected",
        ),
        ({"input_ids": [5, 6], "labels": [6]}, r"labels must be a list of the same length as input_ids \(2\)"),
        (
            {"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "labels": [5, 6, -100]},
            "attention_mask has a 0, expected input_ids without padding; fix the row",
        ),
        (
            {"input_ids": [5, 6], "completion_mask": [0, 1]},
            "completion_mask has a 0, expected input_ids without padding, and labels with -100",
        ),
        ({"input_ids": [5, 6], "labels": [-100, 7]}, r"labels\[1\] is 7, but input_ids\[1\] is 6"),
    ):
        write_lines(path, [bad])
        with pytest.raises(DataError, match=message):
            factory(path, sources=sources).process("train", tokenizer, World())


CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ROWS: list[dict[str, Any]] = [
    chat("one", "two", "three", "four"),
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a", "weight": 1}]},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]},
    {"instruction": "i", "input": "j", "output": "a", "history": [["q", "a"]]},
    {"prompt": "p", "completion": "c"},
    {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
    {"question": "q", "answer": "a"},
    {"text": "t"},
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {
        "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}],
    },
]  # fmt: skip
"""One of each format, as a start."""
JSON_TEXTS = st.sampled_from([DEEP, '{"a": ' * 50_000, "{", "[]", '{"name": []}', "9" * 5000, "NaN"])
ANY_ROW = st.sampled_from(ROWS).flatmap(changed) | st.dictionaries(
    st.sampled_from(["messages", "conversations", "tools", "prompt", "chosen", "rejected", "text", "system", "images"]),
    VALUES | JSON_TEXTS | st.lists(st.fixed_dictionaries({"role": VALUES, "content": VALUES}), max_size=2),
)
CALLS = st.builds(
    lambda text: {
        "messages": [
            *chat("q", "a")["messages"],
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": text}]},
        ]
    },
    JSON_TEXTS,
)
NEARLY_CHATS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer"]), "content": TEXTS | st.none()},
        optional={"reasoning_content": TEXTS, "weight": st.sampled_from([0, 1]), "name": VALUES, "tool_calls": VALUES},
    ),
    max_size=4,
).map(lambda messages: {"messages": messages})
FRAGMENTS = st.sampled_from(
    [
        "{% for m in messages %}", "{% endfor %}", "{{ m.role }}", "{{ m['content'] }}", "{{ m.content | trim }}",
        "{{ messages[7].content }}", "{% if m.role == 'assistant' %}", "{% endif %}", "{% generation %}", "{% endgeneration %}",
        "{{ 1 / 0 }}", "{{ [] + 1 }}", "{{ bos_token }}", "{{ eos_token }}", "<|im_end|>", "{% set x = m %}", "{{ x.y.z }}", "{{", "{%",
        "{#", "{{ raise_exception('no') }}", "{{ tools | tojson }}", "{{ m | tojson }}", "{{ m.tool_calls }}", "{{ ''.__class__ }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ strftime_now('%d') }}", "{{ date_string }}", "{% include 'x' %}",
        "{% break %}", "{% if add_generation_prompt %}", "{{ loop.index }}", "{{ m.content.encode('ascii') }}", "{{ '%d' % 'x' }}", "\n",
        "\0", "\ud800", "{{ '\\ud800' }}",
    ]
)  # fmt: skip
TEMPLATES = st.sampled_from([CHATML_UNTAGGED, CHATML_TAGS_WITH_HEADER, QWEN_3, QWEN_TOOLS, LLAMA_3_TOOLS])
ANY_TEMPLATE = st.lists(FRAGMENTS, max_size=8).map("".join) | st.lists(FRAGMENTS, max_size=2).map(
    lambda parts: "{% for m in messages %}" + "{{ m.content }}".join(parts) + "{% endfor %}"
)


@functools.cache
def tokenizer_of_fuzz() -> Any:
    return make_tokenizer("")


def prepare_one(data: st.DataObject, row: Any, template: str, reading: Reading) -> None:
    tokenizer_of_fuzz().chat_template = template
    overlong, bad = data.draw(st.sampled_from(["drop", "split"])), data.draw(st.sampled_from(["error", "drop"]))
    options = PrepareOptions(64, True, overlong, bad, pairs=reading.format is RowFormat.preference)
    source = SourceRows("data.sources.mine", "mine", ListRows([row], "mine.jsonl"), reading=reading)

    def prepare() -> Any:
        return RowPreparer(source, tokenizer_of_fuzz(), options).prepare_chunk(0, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WordTokenizer, "of", lambda backend: None)  # comparing it with the tokenizer takes half a second
        found = attempt(prepare, DataError, "data.sources.mine: mine.jsonl, row 0: ")
    if found is not None:
        assert found[1].rows == 1 and len(found[0].ids) == len(found[0].mask) == found[0].lengths.sum()


def one_random_row(data: st.DataObject) -> None:
    row = data.draw((ANY_ROW | CALLS | NEARLY_CHATS).filter(lambda row: isinstance(row, dict)))  # as all readers yield
    mapping = {"user": "messages.role.user", "assistant": "messages.role.assistant"}
    reading = data.draw(st.sampled_from([*map(Reading, RowFormat), Reading(RowFormat.question_answer, mapping)]))
    if reading.format is RowFormat.auto:  # resolved by `detect_format` before rows are prepared
        form = attempt(lambda: detect_format(ListRows([row], "mine.jsonl")), DataError, "mine.jsonl, row 0: ")
        reading = Reading(form or RowFormat.messages, detected=form is not None)
    prepare_one(data, row, data.draw(TEMPLATES), reading)


def one_random_template(data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(ROWS[:3]) | NEARLY_CHATS)
    prepare_one(data, row, data.draw(ANY_TEMPLATE), Reading(RowFormat.messages))


test_a_random_row, test_many_random_rows = fuzz(one_random_row)
test_a_random_template, test_many_random_templates = fuzz(one_random_template)
