"""Rows of streamed sources: shards drawn per pass and seed, and how many rows of each source come next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra.data.stream.sources import next_rows
from tests.data.samples import geometry
from tests.data.stream.samples import rows_of, tokens_factory, write_shards


def test_shards_and_rows_come_in_another_order_each_pass_and_seed(tmp_path: Path, tokenizer: Any) -> None:
    write_shards(tmp_path, [[2] * 8] * 6)

    def order(seed: int) -> list[int]:
        made = tokens_factory(tmp_path, buffer_rows=8, packing=False)
        windows = made.build(tokenizer, geometry(seed=seed, steps=96))[0].windows(0)
        return [row for window in windows for batch in window.micro_batches for row, _ in rows_of(batch)]

    first, second, other = order(1)[:48], order(1)[48:], order(2)[:48]
    assert sorted(first) == sorted(second) == sorted(other) == list(range(48))
    shards = [[row // 8 for row in rows[::8]] for rows in (first, second, other)]
    assert shards[0] != shards[1] and shards[0] != shards[2] and first[:8] != sorted(first[:8])


def test_the_next_rows_compensate_for_deviations() -> None:
    assert next_rows([1, 1], [0, 0], [0, 0], 5) == [3, 2]
    assert next_rows([2, 1], [30, 0], [30, 0], 30) == [10, 20]
    assert next_rows([1, 1], [10, 10], [100, 300], 40) == [34, 6], "in tokens: rows of the first have a third as many"
    assert sum(next_rows([0.1, 0.7, 0.2], [3, 9, 1], [3, 9, 1], 7)) == 7
