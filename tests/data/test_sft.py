"""From rows to loaders: what is kept, what is left out and counted, and every bad input with its message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.prepare import build as prepare_module
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.bundled import BundledSource
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError, FieldError
from tests.data.samples import chat, factory, geometry, make_tokenizer, write_lines


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
    monkeypatch.setattr(prepare_module, "CHUNK_ROWS", 64)
    monkeypatch.setattr(prepare_module, "WORTH_SECONDS", 1e-6)
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
            r"got \[0.9, 0.1\] beside eval_sources \(e\)",
        ),
        ({"sources": {}}, "sources: got none, expected at least one"),
    ],
)
def test_refused_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        SFTDataFactory(**{"sources": {"chat": BundledSource()}, **fields})
