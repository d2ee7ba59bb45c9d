"""Conversations from file to loader: what is kept, what is dropped and counted, and every bad input with its message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.bundled import BundledSource
from arctic_hydra.data.tokenized import Malformed
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.samples import chat, factory, geometry, make_tokenizer, write_lines

GOOD = json.dumps(chat("q", "a")).encode()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"data\.sources\.mine: .*bad\.jsonl: the file is empty"),
    "blank": (b"\n \n", "the file is empty"),
    "not json": (
        GOOD + b"\nmessages: yes\n",
        r"bad\.jsonl:2: not JSON \(.*\); got 'messages: yes'; expected one JSON object per line",
    ),
    "cut off": (GOOD + b"\n\n" + GOOD[:20], r"bad\.jsonl:3: not JSON .*the file may be cut off"),
    "not utf-8": (
        GOOD + b"\n" + GOOD.replace(b'"q"', b'"\xe9"'),
        r"bad\.jsonl:2: byte \d+ of the line \(0xe9\) is not UTF-8",
    ),
    "html": (b"<!DOCTYPE html><html>404</html>", "looks like an HTML page, not data; it starts with '<!DOCTYPE html>"),
    "gzip": (b"\x1f\x8b\x08\x00", "is gzip-compressed; unpack it first"),
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "is a git-lfs pointer, not the data; run `git lfs pull`",
    ),
    "one object": (json.dumps(chat("q", "a"), indent=1).encode(), "holds one JSON object over several lines"),
    "array of text": (b'["a"]', "row 0: got a JSON str, expected an object"),
    "bad array": (b'[\n{"messages": []},\n}]', r"bad\.jsonl:3: not JSON"),
    "lines of text": (GOOD + b'\n"text"\n', r"bad\.jsonl:2: got a JSON str, expected an object"),
    "deep": (GOOD + b"\n" + b"[" * 20_000 + b"\n", r"bad\.jsonl:2: JSON nested too deeply to read; got '\[\["),
    "deep array": (b"[" * 20_000, "JSON nested too deeply to read; expected an array of objects"),
    "parquet": (b"PAR1 no more", "a damaged Parquet file"),
}


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"body": "x", "id": 1}, "no 'messages' column; got the columns body, id; expected 'messages'"),
    "messages a text": ({"messages": "hello"}, "messages is a str, expected a list"),
    "no message": ({"messages": []}, "messages is empty"),
    "message a text": ({"messages": ["hello"]}, "message 0 is a str, expected an object"),
    "unknown role": (
        {"messages": [{"role": "gpt", "content": "x"}]},
        "message 0: role 'gpt', expected one of system, .*ShareGPT",
    ),
    "from and value": ({"messages": [{"from": "human", "value": "x"}]}, "role None, expected one of .*ShareGPT"),
    "tool first": (
        {"messages": [USER, {"role": "tool", "content": ""}, ANSWER]},
        "message 1: role 'tool' cannot stand before the first assistant message",
    ),
    "null content": (
        {"messages": [USER, {"role": "assistant", "content": None}]},
        r"message 1 \(assistant\): content is null, expected a text",
    ),
    "content missing": ({"messages": [{"role": "user", "value": "q"}]}, r"content is missing \(keys: role, value\)"),
    "content a list": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "content is list, expected a text",
    ),
    "half a character in a part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q\ud83d"}]}, ANSWER]},
        r"message 0 \(user\): content\[0\] holds \\ud83d at place 1",
    ),
    "half a character": (
        {"messages": [{"role": "user", "content": "q\ud83d"}, ANSWER]},
        r"message 0 \(user\): content holds \\ud83d at place 1, half of a character that was cut in two, expected a text",
    ),
    "half a character in tools": (
        {"messages": [USER, ANSWER], "tools": [{"name": "\ud83d"}]},
        r"the rendered chat holds \\ud83d at place \d+",
    ),
    "images": ({"messages": [USER, ANSWER], "images": ["x.png"]}, "column 'images' holds 1 of them, but this trains"),
    "no answer": ({"messages": [USER]}, "no assistant message, so there is nothing to train on"),
    "tools a text": ({"messages": [USER, ANSWER], "tools": "x"}, "tools is str, expected a list"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(name: str, tmp_path: Path, tokenizer: Any) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        factory(tmp_path / "bad.jsonl").build(tokenizer, geometry())


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


def test_a_missing_file_is_an_environment_problem_and_a_data_error(tmp_path: Path, tokenizer: Any) -> None:
    data = factory(tmp_path / "none.jsonl")
    (problem,) = data.check_environment()
    assert re.match(r"sources\.mine\.path: .*none\.jsonl: no such file .*check the path", problem)
    with pytest.raises(DataError, match=r"data\.sources\.mine: .*none\.jsonl: no such file"):
        data.build(tokenizer, geometry())


def test_supervised_tokens_are_the_answers(small_chats: Path, tokenizer: Any) -> None:
    store = factory(small_chats).process("train", tokenizer, World())
    for index, row in enumerate(map(json.loads, small_chats.read_text().splitlines())):
        text = tokenizer.decode(store.ids(index)[store.mask(index).astype(bool)])
        assert text == row["messages"][1]["content"] + "<|im_end|>"


def test_a_tokenizer_without_chat_template_is_refused(small_chats: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no chat template, which conversations need; pass tokenizer\.chat_template=<file"
    ):
        factory(small_chats).build(make_tokenizer(None), geometry())
    several = make_tokenizer(None)
    several.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(
        DataError, match=r"has several chat templates \(rag, tool_use\) and none of them is the default"
    ):
        factory(small_chats).build(several, geometry())


def test_bundled_data_builds_both_loaders(tokenizer: Any) -> None:
    data = SFTDataFactory(
        sources={"chat": BundledSource()}, eval_sources={"chat": BundledSource()}, max_length=512, num_proc=1
    )
    train, evaluation = data.build(tokenizer, geometry(4, 1))
    assert evaluation is not None
    assert train.summary()["examples"] == 955 and evaluation.summary()["examples"] == 100
    assert train.summary()["sources"]["chat"]["prepared"]["dropped"] == {"overlong": 2}
    assert train.summary()["fill"] > 0.95 and 0.5 < train.summary()["supervised_share"] < 0.7
