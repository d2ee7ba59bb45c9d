"""Each example gets the answer of another row of its source, by the stored examples alone."""

from __future__ import annotations

import numpy as np
import pytest

from arctic_hydra.data.load.mismatched import draw_partners


@pytest.mark.parametrize("sizes", [[1, 1], [2, 1], [2, 2], [1] * 50, [1, 2] * 20])
def test_partners_are_of_another_row_of_the_source(sizes: list[int]) -> None:
    rows = np.repeat(np.arange(len(sizes)), sizes)
    sources, rows = np.repeat([0, 3], len(rows)), np.concatenate([rows, rows])
    partners = draw_partners(sources, rows)
    assert (sources[partners] == sources).all() and (rows[partners] != rows).all()
    if len(set(sizes)) == 1:
        assert sorted(partners) == list(range(len(rows))), "each answer is used once"
    assert partners.tolist() == draw_partners(sources, rows).tolist()


def test_partners_are_not_the_neighbours() -> None:
    rows = np.arange(1000)
    distance = draw_partners(np.zeros(1000, np.int64), rows) - rows
    assert len(np.unique(distance)) > 500
