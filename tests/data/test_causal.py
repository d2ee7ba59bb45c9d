"""Plain texts: every token supervised, long documents sliced, nothing lost."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.data.formats.reading import RowFormat
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.data.source.text import SampleBy, TextSource
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError, FieldError
from tests.data.samples import (
    geometry,
    make_tokenizer,
    shared,
    write_lines,
)


def causal(path: Path, **fields: Any) -> CausalDataFactory:
    return CausalDataFactory(**{"sources": {"mine": TextSource(path=str(path))}, "num_proc": 1, **fields})


def test_every_token_but_the_first_is_supervised(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "one two three"}, {"text": "四 😀"}])
    for adds_bos in (False, True):
        tokenizer = make_tokenizer(None, adds_bos=adds_bos)
        store = causal(path).process("train", tokenizer, World())
        for index, text in enumerate(("one two three", "四 😀")):
            assert tokenizer.decode(store.ids(index)) == "<s>" * adds_bos + text + "<|im_end|>"
            assert store.mask(index).tolist() == [0] + [1] * (len(store.ids(index)) - 1)


def test_a_text_that_begins_with_bos_has_one(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(None, adds_bos=True)
    path = write_lines(tmp_path / "a.jsonl", [{"text": "<s><s>one two"}, {"text": "one two"}])
    store = causal(path).process("train", tokenizer, World())
    assert store.ids(0).tolist() == store.ids(1).tolist()


def test_an_empty_text_without_any_token_is_left_out(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = None
    path = write_lines(tmp_path / "a.jsonl", [{"text": ""}, {"text": "one two"}])
    store = causal(path).process("train", tokenizer, World())
    assert store.rows.tolist() == [1] and store.report["mine"]["dropped"] == {"no_supervised_token": 1}


@pytest.mark.parametrize("name", ["c4_demo.jsonl", "wiki_demo.txt"])
def test_real_texts_are_sliced_without_loss(name: str, tokenizer: Any) -> None:
    path = shared(f"text/{name}")
    texts = (
        [json.loads(line)["text"] for line in path.open()] if path.suffix == ".jsonl" else path.read_text().split("\n")
    )
    wanted = [text for text in texts if text.strip()]
    store = causal(path, max_length=1024).process("train", tokenizer, World())
    report = store.report["mine"]
    assert (
        report["rows"] == len(wanted) and report["dropped"] == {} and report["tokens_lost"] == report["truncated"] == 0
    )
    assert report["split"] > 0 and store.lengths.max() <= 1024
    for row in (0, len(wanted) - 1):
        parts = [store.ids(index) for index in np.flatnonzero(store.rows == row)]
        assert tokenizer.decode(np.concatenate(parts)) == wanted[row] + "<|im_end|>"
        assert all(len(part) == 1024 for part in parts[:-1])
    loader, _ = causal(path, max_length=1024).build(tokenizer, geometry(2))
    assert loader.summary()["fill"] > 0.95 and loader.summary()["supervised_share"] > 0.99


def test_other_policies_and_columns(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"body": "word " * 50, "messages": []}, {"body": "word", "messages": []}])
    fields = {"column": "body", "max_length": 20}
    kept = {
        policy: causal(path, overlong=policy, **fields).process("train", tokenizer, World()).report["mine"]["kept"]
        for policy in (Overlong.drop, Overlong.keep_start, Overlong.keep_end, Overlong.split)
    }
    assert kept[Overlong.drop] == 1 and kept[Overlong.keep_start] == kept[Overlong.keep_end] == 2
    assert kept[Overlong.split] > 3
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: no 'text' column; got the columns body, messages; expected 'text'"
    ):
        causal(path).process("train", tokenizer, World())


def test_paragraphs(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n\nc\n")
    sources = {"mine": TextSource(path=str(tmp_path / "a.txt"), sample_by=SampleBy.paragraph)}
    store = causal(tmp_path, sources=sources).process("train", tokenizer, World())
    assert tokenizer.decode(store.ids(0)) == "a\nb<|im_end|>" and len(store) == 2


def test_other_forms_are_refused() -> None:
    sources = {"mine": JsonSource(path="x", format=RowFormat.alpaca)}
    with pytest.raises(
        FieldError, match=r"sources\.mine\.format: got alpaca, expected text: this data trains on plain"
    ):
        CausalDataFactory(sources=sources)


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60), max_size=8),
    limit=st.integers(4, 20),
)
def test_pieces_of_texts_join_to_the_texts_and_never_exceed_max_length(texts: list[str], limit: int) -> None:
    """ArcticTraining's `always_max_length` overshoots and its filter drops; TRL's packing truncates silently."""
    tokenizer = make_tokenizer(None)
    texts = [*texts, "always here"]
    whole = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
    whole = [ids for ids in whole if len(ids) > 1]  # a lone eos token has nothing before it to predict it
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder) / "texts.jsonl", [{"text": text} for text in texts])
        data = CausalDataFactory(
            sources={"mine": JsonSource(path=str(path))},
            max_length=limit,
            cache=False,
            num_proc=1,
            overlong=Overlong.split,
        )
        store = data.process("train", tokenizer, World())
    pieces: dict[int, list[int]] = {}
    for index in range(len(store)):
        assert store.lengths[index] <= limit
        pieces.setdefault(int(store.rows[index]), []).extend(store.ids(index).tolist())
    lost = store.report["mine"]["tokens_lost"]
    joined = [pieces[row] for row in sorted(pieces)]
    assert sum(map(len, joined)) + lost == sum(map(len, whole)), "every token is kept, or counted as lost"
    assert not lost or any(len(ids) % limit == 1 for ids in whole), "only a piece of one token cannot be trained on"
    assert lost or joined == whole
