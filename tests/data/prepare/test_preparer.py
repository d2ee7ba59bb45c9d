"""Rows to examples: what is kept of a row, and the counts of what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.samples import chat, factory, geometry, make_tokenizer, write_lines

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
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9]}, {"input_ids": [1], "labels": [1]}]
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
        ({"input_ids": [5, 6], "labels": [-100, 7]}, r"labels\[1\] is 7, but input_ids\[1\] is 6"),
    ):
        write_lines(path, [bad])
        with pytest.raises(DataError, match=message):
            factory(path, sources=sources).process("train", tokenizer, World())
