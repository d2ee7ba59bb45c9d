"""Statistics of examples: their number, their lengths and the share of supervised tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from arctic_hydra.data.arrays import Array

PERCENTILES = (50, 90, 99, 100)


def length_statistics(length_counts: Array, supervised_tokens: int, tokens: int | None = None) -> dict[str, Any]:
    """Return the statistics of examples of which `length_counts[n]` are n tokens long.

    `tokens` is the number of tokens of all examples, by default the sum of the lengths; a pair is as long as its longer side.
    """
    examples = int(length_counts.sum())
    if tokens is None:
        tokens = int((length_counts * np.arange(len(length_counts))).sum())
    below = np.cumsum(length_counts)
    ranks = [int(np.ceil(percent / 100 * (examples - 1))) for percent in PERCENTILES]
    lengths = np.searchsorted(below, ranks, side="right") if examples else [0] * len(PERCENTILES)
    return {
        "examples": examples,
        "tokens": tokens,
        "supervised_tokens": supervised_tokens,
        "supervised_share": round(supervised_tokens / tokens, 6) if tokens else 0.0,
        "length_tokens": {f"p{percent}": int(value) for percent, value in zip(PERCENTILES, lengths, strict=True)},
    }
