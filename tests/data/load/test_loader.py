"""The loader of tokenized data: every example once per epoch, in a new order each, from any step on."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_hydra.data.batch import StepBatch
from arctic_hydra.data.cache.token_store import JoinedStore, TokenStore, write_store
from arctic_hydra.data.documents import Chunk
from arctic_hydra.data.load.loader import LoaderOptions, PackedLoader
from tests.data.load.samples import documents, two_sources
from tests.data.samples import (
    factory,
    geometry,
)


def test_windows_start_anywhere_without_prefetching_too_and_threads_end(small_chats: Path, tokenizer: Any) -> None:
    loader, _ = factory(small_chats, max_length=128).build(tokenizer, geometry(2, 1))
    plain, _ = factory(small_chats, max_length=128, prefetch_steps=0).build(tokenizer, geometry(2, 1))
    ids = lambda windows: [[b.example_ids for b in w.micro_batches] for w in windows]  # noqa: E731
    whole = ids(loader.windows(3))
    assert whole == ids(plain.windows(3))
    assert ids(loader.windows(3, start=4)) == whole[4:]
    assert [window.step_in_epoch for window in loader.windows(3, start=4)] == list(range(4, loader.steps(3)))
    stopped = loader.windows(0)
    assert isinstance(next(stopped), StepBatch)
    stopped.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("arctic_hydra-loader")]


def test_packs_differ_by_epoch_and_seed(small_chats: Path, tokenizer: Any) -> None:
    made = factory(small_chats, max_length=128, prefetch_steps=0).build(tokenizer, geometry(1, 1))[0]
    again = factory(small_chats, max_length=128, prefetch_steps=0).build(tokenizer, geometry(1, 1))[0]
    other = factory(small_chats, max_length=128, prefetch_steps=0).build(tokenizer, geometry(1, 1, seed=8))[0]

    def order(loader: Any, epoch: int) -> list[list[int]]:
        return [batch.example_ids for window in loader.windows(epoch) for batch in window.micro_batches]

    def packs(loader: Any, epoch: int) -> set[frozenset[int]]:
        return {frozenset(batch.example_ids) for window in loader.windows(epoch) for batch in window.micro_batches}

    first, second = packs(made, 0), packs(made, 1)
    assert len(first) == len(second) == made.steps(0) == made.steps(1) == made.steps(7)
    assert sorted(example for pack in second for example in pack) == list(range(37))
    assert first != second, "examples of one length change places"
    assert packs(again, 1) == second, "the same without the epoch before"
    assert order(made, 0) != order(made, 1) and order(made, 0) != order(other, 0)


def test_previews_show_evenly_spaced_examples(small_chats: Path, tokenizer: Any) -> None:
    loader, _ = factory(small_chats).build(tokenizer, geometry())
    example = loader.preview(37)[5]
    assert (example.source, example.row) == ("mine", 5)
    assert [shown.row for shown in loader.preview(3)] == [0, 18, 36] and len(loader.preview(99)) == 37
    answer = [token for token, mask in zip(example.ids, example.mask, strict=True) if mask]
    assert tokenizer.decode(answer) == "Answer 5. <|im_end|>"


def test_the_fingerprint_follows_everything_that_determines_the_batches(small_chats: Path, tokenizer: Any) -> None:
    def mark(micro: int = 2, accumulation: int = 2, rank: int = 0, size: int = 1, seed: int = 7, **fields: Any) -> str:
        return (
            factory(small_chats, **fields)
            .build(tokenizer, geometry(micro, accumulation, rank, size, seed))[0]
            .fingerprint
        )

    assert mark() == mark(1, 4) == mark(1, 2, 1, 2) == mark(num_proc=1, cache=False)
    marks = [mark(), mark(4, 2), mark(seed=8), mark(max_length=128), mark(packing=False), mark(mask_inputs=False)]
    assert len(set(marks)) == len(marks)


def test_a_run_sees_the_mix_of_its_epoch(small_chats: Path, tmp_path: Path, tokenizer: Any) -> None:
    fields = {"sources": two_sources(tmp_path, small_chats, one=1, two="100%"), "max_length": 128}
    seen: list[Counter[int]] = []
    for epoch in (0, 1):
        found: Counter[int] = Counter()
        for rank in (0, 1):
            loader, _ = factory(small_chats, **fields).build(tokenizer, geometry(2, 1, rank, 2))
            windows = list(loader.windows(epoch))
            assert len(windows) == loader.steps(epoch)
            for window in windows:
                for batch in window.micro_batches:
                    found.update(batch.example_ids)
        seen.append(found)
    for found in seen:
        two = [count for example, count in found.items() if example >= 37]
        assert sum(two) == 21 and set(two) == {4, 5} and sum(found.values()) == 42
        assert max(count for example, count in found.items() if example < 37) == 1
    assert seen[0] != seen[1]


def test_the_fingerprint_follows_weights_and_grouping(small_chats: Path, tmp_path: Path, tokenizer: Any) -> None:
    plain = two_sources(tmp_path, small_chats)
    weighted = two_sources(tmp_path, small_chats, one=1, two=2)
    variants: list[dict[str, Any]] = [
        {"sources": plain},
        {"sources": weighted},
        {"sources": weighted, "mix_by": "tokens"},
        {"sources": plain, "packing": False},
        {"sources": plain, "packing": False, "group_by_length": True},
    ]
    marks = {
        factory(small_chats, max_length=128, **fields).build(tokenizer, geometry(2))[0].fingerprint
        for fields in variants
    }
    assert len(marks) == len(variants)


CAPACITY = 24


DOCUMENT = st.lists(st.tuples(st.integers(1, 900), st.booleans()), min_size=1, max_size=CAPACITY)


def stored(rows: list[list[tuple[int, bool]]]) -> JoinedStore:
    """Return a store of documents, each a list of (token, whether it is trained on)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.array([token for row in rows for token, _ in row], np.int32)
    mask = np.array([trained for row in rows for _, trained in row], np.uint8)
    mask[np.cumsum([0, *lengths[:-1]])] = 0  # as in preparation: a first token has no predecessor
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
def test_the_union_over_ranks_is_the_set_and_no_token_is_lost_or_trained_twice(
    rows: list[list[tuple[int, bool]]], micro: int, accumulation: int, ranks: int, packing: bool, epoch: int
) -> None:
    store = stored(rows)
    options = LoaderOptions(packing, pad_token_id=0, pack_tokens=CAPACITY, shuffle=True, prefetch_steps=0)
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
