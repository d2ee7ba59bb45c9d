"""Whatever the documents and however a step is cut: no token lost, invented or trained twice, every example once."""

from __future__ import annotations

import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_hydra.data.cache.token_store import JoinedStore, TokenStore, write_store
from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.data.documents import Chunk
from arctic_hydra.data.encode.chat import ChatEncoder
from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.formats.messages import check_chat
from arctic_hydra.data.load.loader import LoaderOptions, PackedLoader
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World
from tests.data.samples import (
    CHATML_TAGS_WITHOUT_STOP,
    CHATML_UNTAGGED,
    COHERE_2,
    GPT_OSS,
    chat,
    geometry,
    make_tokenizer,
    write_lines,
)
from tests.data.test_loader import documents

CAPACITY = 24
DOCUMENT = st.lists(st.tuples(st.integers(1, 900), st.booleans()), min_size=1, max_size=CAPACITY)


def stored(rows: list[list[tuple[int, bool]]]) -> JoinedStore:
    """Return a store of documents, each a list of (token, whether it is trained on)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.array([token for row in rows for token, _ in row], np.int32)
    mask = np.array([trained for row in rows for _, trained in row], np.uint8)
    mask[np.cumsum([0, *lengths[:-1]])] = 0  # as preparation does: nothing comes before a first token
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), [Chunk(ids, mask, lengths, np.arange(len(rows)))], dict)
        return JoinedStore({"mine": TokenStore(Path(folder), "key")})


@settings(deadline=None, max_examples=80)
@given(
    rows=st.lists(DOCUMENT, min_size=1, max_size=40),
    micro=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    ranks=st.integers(1, 4),
    packing=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_pitfall_06_14_the_union_over_ranks_is_the_set_and_no_token_is_lost_or_trained_twice(
    rows: list[list[tuple[int, bool]]], micro: int, accumulation: int, ranks: int, packing: bool, epoch: int
) -> None:
    store = stored(rows)
    options = LoaderOptions(packing, pad_token_id=0, max_length=CAPACITY, shuffle=True, prefetch_steps=0)
    seen: Counter[Any] = Counter()
    for rank in range(ranks):
        cut = geometry(micro, accumulation, rank, ranks)
        loader = PackedLoader(store, np.arange(len(store)), ["mine"], cut, options)
        for window in loader.windows(epoch):
            for batch in window.micro_batches:
                assert len(set(batch.rows_K.tolist())) == batch.num_supervised, "a position is trained once"
                held = zip(batch.example_ids, documents(batch), strict=True) if batch.example_ids else ()
                seen.update((example, tuple(ids), tuple(row + 1 for row in rows)) for example, (ids, rows) in held)
                assert batch.num_tokens == sum(batch.document_lengths) * bool(batch.example_ids)
    expected = {
        (index, tuple(store.ids(index).tolist()), tuple(np.flatnonzero(store.mask(index)).tolist()))
        for index in range(len(store))
    }
    assert seen == Counter(expected)


PIECES = [
    "a",
    " ",
    "\n",
    "user",
    "assistant",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "Zqc0qZ",
    "é",
    "<",
    "<|end|>",
    "1",
]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
FORMS = [  # template, what stands before an answer and is generated too, stop tokens
    (CHATML_UNTAGGED, "", "<|im_end|>"),
    (CHATML_TAGS_WITHOUT_STOP, "", "<|im_end|>"),
    (COHERE_2, "", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    (GPT_OSS, "<|channel|>final<|message|>", "<|end|>"),
]


@cache
def encoder_of(template: str) -> tuple[Any, ChatEncoder]:
    tokenizer = make_tokenizer(template, eos_token="</s>")
    return tokenizer, ChatEncoder(tokenizer)


@settings(deadline=None, max_examples=60)
@given(contents=st.lists(CONTENT, min_size=2, max_size=6), form=st.sampled_from(FORMS))
def test_pitfall_07_any_answer_and_its_stop_tokens_are_what_is_trained_on(
    contents: list[str], form: tuple[str, str, str]
) -> None:
    """Answers that repeat a question, hold a header or a stop token, or are empty: each is where it is."""
    template, before, stop = form
    tokenizer, encoder = encoder_of(template)
    contents = contents[: len(contents) // 2 * 2]
    (encoded,) = encoder.encode([check_chat(chat(*contents)["messages"])])
    assert isinstance(encoded, Encoded), encoded
    expected = [before + answer + stop for answer in contents[1::2]]
    if before:
        expected[-1] = expected[-1].removesuffix(stop) + "<|return|>"
    assert [tokenizer.decode(encoded.ids[first:last]) for first, last in encoded.spans] == expected


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60), max_size=8),
    limit=st.integers(4, 20),
)
def test_w10_pieces_of_texts_join_to_the_texts_and_never_exceed_max_length(texts: list[str], limit: int) -> None:
    """ArcticTraining's `always_max_length` overshoots and its filter drops; TRL's packing cuts without a word."""
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
