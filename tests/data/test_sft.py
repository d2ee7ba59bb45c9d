"""From rows to loaders: what is kept, what is left out and counted, and every bad input with its message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.prepare import build as build_module
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.bundled import BundledSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.tokenized import Malformed
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError, FieldError
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


def test_pitfall_08_nothing_left_is_an_error_with_a_table(tmp_path: Path, tokenizer: Any) -> None:
    rows = [chat("q", "word " * 100), chat("word " * 100, "a")]
    path = write_lines(tmp_path / "long.jsonl", rows)
    table = r"source \| rows \| kept \| overlong\n  data\.sources\.mine \| 2 \| 0 \| 2\n"
    with pytest.raises(DataError, match=rf"(?s)no example is left.*{table}.*raise data\.max_length"):
        factory(path, max_length=20).build(tokenizer, geometry())


@pytest.mark.parametrize(("empty", "warned"), [(2, True), (1, False)])
def test_pitfall_08_many_rows_without_anything_trained_are_said_aloud_from_the_cache_too(
    empty: int, warned: bool, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    untrained = chat("q", "a")
    untrained["messages"][1]["weight"] = 0
    path = write_lines(tmp_path / "rows.jsonl", [chat("q", "a")] * (10 - empty) + [untrained] * empty)
    for _ in range(2):
        caplog.clear()
        factory(path).process("train", tokenizer, World())
        said = (
            f"data.sources.mine: {empty} of 10 rows are left out because no token of them is trained on; expected few"
        )
        assert (said in caplog.text) is warned


def test_pitfall_29_a_truncated_answer_has_no_end_token(tmp_path: Path, tokenizer: Any) -> None:
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


def test_supervised_tokens_are_the_answers(small_chats: Path, tokenizer: Any) -> None:
    store = factory(small_chats).process("train", tokenizer, World())
    for index, row in enumerate(map(json.loads, small_chats.read_text().splitlines())):
        text = tokenizer.decode(store.ids(index)[store.mask(index).astype(bool)])
        assert text == row["messages"][1]["content"] + "<|im_end|>"


@pytest.mark.slow
def test_worker_processes_give_the_same_examples(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "many.jsonl", [chat(f"q {n}", "word " * (n % 40)) for n in range(400)])
    monkeypatch.setattr(build_module, "CHUNK_ROWS", 64)
    monkeypatch.setattr(build_module, "SECONDS_PER_HELPER", 1e-6)
    stores = [
        factory(path, max_length=40, cache=False, num_proc=n).process("train", tokenizer, World()) for n in (1, 2)
    ]
    assert stores[0].report == stores[1].report and stores[0].report["mine"]["dropped"]["overlong"] > 50
    for index in range(len(stores[0])):
        assert stores[0].ids(index).tolist() == stores[1].ids(index).tolist()
    messages = []
    for workers in (1, 2):  # an error keeps its place
        with pytest.raises(DataError, match=r"many\.jsonl:\d+: \d+ tokens") as caught:
            factory(path, max_length=40, cache=False, num_proc=workers, overlong=Overlong.error).build(
                tokenizer, geometry()
            )
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_rows_that_are_tokenised_already(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9]}, {"input_ids": [1], "labels": [1]}]
    path = write_lines(tmp_path / "ids.jsonl", rows)
    sources = {"ids": JsonSource(path=str(path), process=False)}
    tokenizer = make_tokenizer(None)  # no chat template is needed
    store = factory(path, sources=sources).process("train", tokenizer, World())
    assert [store.ids(index).tolist() for index in (0, 1)] == [[5, 6, 7], [8, 9]]
    assert [store.mask(index).tolist() for index in (0, 1)] == [[0, 1, 1], [0, 1]]
    assert store.report["ids"]["dropped"] == {"no_supervised_token": 1}
    for bad, message in (
        ({"input_ids": [5, "x"]}, "needs 'input_ids', a list of token ids"),
        (
            {"input_ids": [5, len(tokenizer), 6]},
            rf"ids\.jsonl:1: input_ids\[1\] is {len(tokenizer)}, but the tokenizer has {len(tokenizer)} tokens; expected",
        ),
        ({"input_ids": [5, 6], "labels": [6]}, r"labels must be a list as long as input_ids \(2\)"),
        ({"input_ids": [5, 6], "labels": [-100, 7]}, r"labels\[1\] is 7, but input_ids\[1\] is 6"),
    ):
        write_lines(path, [bad])
        with pytest.raises(DataError, match=message):
            factory(path, sources=sources).process("train", tokenizer, World())


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


def test_several_sources_keep_their_names(small_chats: Path, tmp_path: Path, tokenizer: Any) -> None:
    other = write_lines(tmp_path / "other.jsonl", [chat("q", "other")] * 3)
    sources = {"one": JsonSource(path=str(small_chats)), "two": JsonSource(path=str(other), sample_count=2)}
    loader, evaluation = factory(other, sources=sources, max_length=128).build(tokenizer, geometry(2, 1))
    assert evaluation is None and loader.source_names == ["one", "two"]
    tokens = {0: 0, 1: 0}
    for window in loader.windows(0):
        for batch in window.micro_batches:
            for source in batch.source_K.tolist():
                tokens[source] += 1
    figures = loader.summary()
    assert [figures["sources"][name]["supervised_tokens"] for name in ("one", "two")] == list(tokens.values())
    assert figures["sources"]["two"]["examples"] == 2
    assert figures["tokens"] == sum(source["tokens"] for source in figures["sources"].values())
    json.dumps(figures)


def test_held_out_split_is_disjoint_and_complete(small_chats: Path, tokenizer: Any) -> None:
    data = factory(small_chats, train_eval_split=["80%", 0.2], max_length=256)
    assert data.has_evaluation
    train, evaluation = data.build(tokenizer, geometry(2, 1))
    assert evaluation is not None
    ids = [
        [i for w in loader.windows(e) for b in w.micro_batches for i in b.example_ids]
        for loader, e in ((train, 0), (evaluation, 0), (evaluation, 1))
    ]
    assert sorted(ids[0] + ids[1]) == list(range(37)) and len(ids[1]) == 7
    assert ids[1] == ids[2], "evaluation is not shuffled"


def test_bundled_data_builds_both_loaders(tokenizer: Any) -> None:
    data = SFTDataFactory(
        sources={"chat": BundledSource()}, eval_sources={"chat": BundledSource()}, max_length=512, num_proc=1
    )
    train, evaluation = data.build(tokenizer, geometry(4, 1))
    assert evaluation is not None
    assert train.summary()["examples"] == 955 and evaluation.summary()["examples"] == 100
    assert train.summary()["sources"]["chat"]["prepared"]["dropped"] == {"overlong": 2}
    assert train.summary()["fill"] > 0.95 and 0.5 < train.summary()["supervised_share"] < 0.7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 0}, "max_length: got 0, expected 2 or more"),
        ({"max_length": -5}, "max_length: got -5, expected 2 or more"),
        ({"max_length": 10.5}, "max_length: got 10.5, expected a whole number"),
        ({"num_proc": 0}, "num_proc: got 0, expected 1 or more"),
        (
            {"train_eval_split": [0.5, 0.4]},
            r"train_eval_split: got \[0.5, 0.4\], expected two shares from 0 to 1 that sum to 1",
        ),
        ({"train_eval_split": [0.0, 1.0]}, "leaves nothing to train on"),
        ({"train_eval_split": ["x", 1.0]}, "train_eval_split: got 'x', expected a number"),
        (
            {"train_eval_split": [0.9, 0.1], "eval_sources": {"e": BundledSource()}},
            r"got \[0.9, 0.1\] together with eval_sources \(e\)",
        ),
        ({"sources": {}}, "sources: got none, expected at least one"),
    ],
)
def test_refused_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        SFTDataFactory(**{"sources": {"chat": BundledSource()}, **fields})
