"""Mixing by weight, grouping by length, balancing over ranks: nothing lost, the same batches for any number of ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_hydra.data.load.order import balanced, epoch_order, grouped_order, mix
from arctic_hydra.data.load.packing import plan_packs
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import FieldError
from tests.data.samples import chat, factory, geometry, write_lines

LENGTHS = np.random.default_rng(3).lognormal(5, 0.9, 4000).astype(np.int64) + 1


@given(count=st.integers(1, 60), micro=st.integers(1, 4), ranks=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_balancing_keeps_every_pack(count: int, micro: int, ranks: int, seed: int) -> None:
    costs = np.random.default_rng(seed).random(count) * 100
    packs = np.arange(count)
    assert sorted(balanced(packs, costs, micro, ranks)) == packs.tolist()


def spread(window: np.ndarray[Any, Any], costs: np.ndarray[Any, Any], micro: int, ranks: int) -> float:
    sums = costs[window].reshape(-1, ranks, micro).sum(axis=(0, 2))
    return float(sums.max() / sums.mean())


def test_ranks_get_alike_work() -> None:
    many = np.minimum(np.random.default_rng(4).lognormal(5.9, 0.9, 40_000).astype(np.int64) + 1, 4096)
    plan = plan_packs(many, 4096)
    costs = np.add.reduceat(many[plan.examples].astype(np.float64) ** 2, plan.bounds[:-1])
    order = epoch_order(len(plan), 1, 0)
    before, after = [], []
    for start in range(0, len(order) - 64, 64):
        window = order[start : start + 64]
        before.append(spread(window, costs, 2, 8))
        after.append(spread(balanced(window, costs, 2, 8), costs, 2, 8))
    assert np.mean(before) > 1.3 and np.mean(after) < 1.06, "the slowest rank beside the mean"


def test_grouping_saves_padding_and_stays_random() -> None:
    orders = [grouped_order(LENGTHS, 32, 5, epoch) for epoch in (0, 1, 0)]
    assert all(sorted(order) == list(range(4000)) for order in orders)
    assert orders[0].tolist() == orders[2].tolist() != orders[1].tolist()

    def waste(order: np.ndarray[Any, Any]) -> float:
        batches = LENGTHS[order].reshape(-1, 32)
        return 1 - float(batches.sum() / (batches.max(axis=1) * 32).sum())

    assert waste(orders[0]) < 0.3 < 0.6 < waste(np.arange(4000))


@pytest.mark.parametrize("by_tokens", [False, True])
def test_mixing_follows_the_weights_and_is_drawn_anew(by_tokens: bool) -> None:
    sources = np.repeat([0, 1, 2], [3000, 900, 100])
    sizes = LENGTHS if by_tokens else np.ones(4000, np.int64)
    drawn = [mix(sources, sizes, [1, 2, 1], 7, epoch) for epoch in (0, 1, 0)]
    assert drawn[0].tolist() == drawn[2].tolist() != drawn[1].tolist()
    shares = [
        float(sizes[chosen][sources[chosen] == number].sum() / sizes.sum())
        for chosen in drawn[:1]
        for number in range(3)
    ]
    assert np.allclose(shares, [0.25, 0.5, 0.25], atol=0.01)
    for number in range(3):  # a repeated source: no example twice more than another
        counts = Counter(drawn[0][sources[drawn[0]] == number].tolist())
        assert max(counts.values()) - min([counts[index] for index in np.flatnonzero(sources == number)]) <= 1


def two_sources(tmp_path: Path, small_chats: Path, **weights: Any) -> dict[str, JsonSource]:
    other = write_lines(tmp_path / "other.jsonl", [chat(f"q {n}", "other") for n in range(5)])
    paths = {"one": small_chats, "two": other}
    return {name: JsonSource(path=str(path), weight=weights.get(name)) for name, path in paths.items()}


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


def test_the_fingerprint_knows_the_order(small_chats: Path, tmp_path: Path, tokenizer: Any) -> None:
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


def test_requests_without_effect_are_refused(small_chats: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"group_by_length": True}, "group_by_length: has no effect together with packing=true"),
        ({"mix_by": "tokens"}, "mix_by: has no effect without a weight"),
        (
            {"sources": two_sources(tmp_path, small_chats, one=1)},
            r"sources\.two\.weight: got none, but another source has one",
        ),
        (
            {"eval_sources": {"e": JsonSource(path="x", weight=1)}},
            r"eval_sources\.e\.weight: has no effect: evaluation uses each example once",
        ),
    ]
    for fields, message in cases:
        with pytest.raises(FieldError, match=message):
            factory(small_chats, **fields)
    with pytest.raises(FieldError, match=r"weight: got 0, expected 1e-09 or more"):
        JsonSource(path="x", weight=0)
