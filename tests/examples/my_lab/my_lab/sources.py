"""A source of rows of one's own: it only reads; slices and samples are those of every source."""

from __future__ import annotations

from typing import Any

from arctic_hydra.component import component
from arctic_hydra.data.base import DataSource
from arctic_hydra.human_numbers import HumanInt, integer


@component(group="source", name="sums")
class SumsSource(DataSource):
    """Additions as conversations."""

    largest: HumanInt = integer(9, minimum=1)
    """Largest number that is added."""

    def load(self, split: str) -> list[dict[str, Any]]:
        numbers = range(self.largest + 1)
        pairs = [(a, b) for a in numbers for b in numbers]
        return [
            {
                "messages": [
                    {"role": "user", "content": f"{split}: {a} + {b}?"},
                    {"role": "assistant", "content": f"{a + b}."},
                ]
            }
            for a, b in pairs
        ]
