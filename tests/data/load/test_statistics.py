"""Statistics of lengths, from a histogram of them."""

from __future__ import annotations

import numpy as np

from arctic_hydra.data.load.statistics import length_statistics


def test_percentiles_are_those_of_the_sorted_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 1000)
    found = length_statistics(np.bincount(lengths), supervised_tokens=1000)
    ordered = np.sort(lengths)
    assert found["examples"] == 1000 and found["tokens"] == lengths.sum()
    assert found["supervised_share"] == round(1000 / int(lengths.sum()), 6)
    assert found["length_tokens"] == {
        f"p{percent}": int(ordered[int(np.ceil(percent / 100 * 999))]) for percent in (50, 90, 99, 100)
    }


def test_no_examples() -> None:
    found = length_statistics(np.zeros(1, np.int64), 0)
    assert (found["examples"], found["tokens"], found["supervised_share"]) == (0, 0, 0.0)
    assert set(found["length_tokens"].values()) == {0}
