"""Truncation: no token is lost, invented or trained twice beyond what the policy says and the report counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arctic_hydra.data.prepare.truncation import Overlong, kept_spans
from arctic_hydra.distributed import World
from tests.data.samples import chat, factory, write_lines

CUTTING = (Overlong.keep_start, Overlong.keep_end, Overlong.split)


@given(
    length=st.integers(3, 400),
    limit=st.integers(3, 60),
    ends=st.sets(st.integers(1, 400)),
    head=st.integers(0, 1),
    policy=st.sampled_from(CUTTING),
)
def test_kept_spans_fit_and_cover(length: int, limit: int, ends: set[int], head: int, policy: Overlong) -> None:
    length = max(length, limit + 1)
    turn_ends = sorted(end for end in ends if end <= length)
    parts = kept_spans(length, limit, policy, turn_ends, head)
    assert all(0 <= start < stop <= length and stop - start + (head if start else 0) <= limit for start, stop in parts)
    if policy is Overlong.split:
        assert [parts[0][0], *(stop for _, stop in parts)] == [*(start for start, _ in parts), length]
    else:
        assert len(parts) == 1 and (parts[0][0] == 0 if policy is Overlong.keep_start else parts[0][1] == length)
    for start, stop in parts:
        reachable = [end for end in turn_ends if start < end <= start + limit - (head if start else 0)]
        if policy is not Overlong.keep_end and reachable and stop != length:
            assert stop == reachable[-1], "a cut falls on the last end of a turn that fits"


def prepared(path: Path, tokenizer: Any, policy: Overlong, limit: int = 24, **fields: Any) -> Any:
    return factory(path, max_length=limit, overlong=policy, **fields).process("train", tokenizer, World())


def texts(store: Any, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(store.ids(index)) for index in range(len(store))]


LONG = ("one", "1 " * 3, "two", "2 " * 3, "three", "3 " * 3)


def test_cuts_fall_between_turns(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "long.jsonl", [chat(*LONG), chat("q", "a")])
    whole = texts(prepared(path, tokenizer, Overlong.drop, 512), tokenizer)[0]
    total = len(prepared(path, tokenizer, Overlong.drop, 512).ids(0))
    split = prepared(path, tokenizer, Overlong.split)
    parts = texts(split, tokenizer)[:-1]
    assert len(parts) > 1 and "".join(parts) == whole
    assert all(part.rstrip("\n").endswith("<|im_end|>") for part in parts)
    assert split.rows.tolist() == [0] * len(parts) + [1]
    report = split.report["mine"]
    assert (report["split"], report["truncated"], report["tokens_lost"], report["tokens"]) == (
        1,
        0,
        0,
        split.lengths.sum(),
    )
    start, end = (prepared(path, tokenizer, policy) for policy in (Overlong.keep_start, Overlong.keep_end))
    assert texts(start, tokenizer)[0] == parts[0] and texts(end, tokenizer)[0] == parts[-1]
    for store in (start, end):
        report = store.report["mine"]
        assert (report["truncated"], report["tokens_lost"], report["kept"]) == (1, total - len(store.ids(0)), 2)


def test_a_turn_too_long_is_cut_anyway_and_nothing_is_trained_twice(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "long.jsonl", [chat("q", "word " * 100)])
    whole = prepared(path, tokenizer, Overlong.drop, 512)
    split = prepared(path, tokenizer, Overlong.split)
    joined = np.concatenate([split.ids(index) for index in range(len(split))])
    assert joined.tolist() == whole.ids(0).tolist() and split.lengths.max() == 24
    # Only the first token of each later part goes untrained: nothing in the part comes before it.
    assert split.supervised.sum() == whole.supervised.sum() - (len(split) - 1)
