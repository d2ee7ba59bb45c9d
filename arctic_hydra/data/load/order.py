"""Which examples an epoch holds, in which order, and which rank gets which: all drawn from the seed, the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arctic_hydra.data.arrays import Array, Ints

MEGA_BATCHES = 50
"""Global batches whose examples are sorted by length together: enough to group, few enough to stay random."""


def mix(sources: Array, sizes: Array, weights: Sequence[float], seed: int, epoch: int) -> Ints:
    """Return the examples of an epoch (indices, with repetition), drawn anew for each.

    `sizes` is what weights are in: 1 for each example, or its tokens. Sources share the sum of all sizes by weight; a
    source that is too small for its share is repeated whole before any of its examples comes once more.
    """
    total, norm = float(sizes.sum()), float(sum(weights))
    parts: list[Ints] = []
    for source, weight in enumerate(weights):
        mine = np.flatnonzero(sources == source)
        share, own = total * weight / norm, float(sizes[mine].sum())
        if not len(mine):
            continue
        whole = int(share // own)
        drawn = mine[epoch_order(len(mine), seed + 1 + source, epoch)]
        reached = np.cumsum(sizes[drawn])
        rest = drawn[: int(np.searchsorted(reached, share - whole * own, side="right"))]
        parts += [np.tile(mine, whole), rest]
    return np.sort(np.concatenate(parts)).astype(np.int64)


def grouped_order(lengths: Array, batch: int, seed: int, epoch: int) -> Ints:
    """Return an order of rows whose global batches hold rows of like length; the batches come in random order."""
    order = epoch_order(len(lengths), seed, epoch)
    step = batch * MEGA_BATCHES
    chunks = [order[start : start + step] for start in range(0, len(order), step)]
    by_length = np.concatenate([chunk[np.argsort(-lengths[chunk], kind="stable")] for chunk in chunks] or [order])
    whole = len(by_length) // batch
    shuffled = by_length[: whole * batch].reshape(whole, batch)[epoch_order(whole, seed + 1, epoch)]
    return np.concatenate([shuffled.reshape(-1), by_length[whole * batch :]])  # the ragged batch stays last


def balanced(packs: Ints, costs: Array, micro_batch_size: int, ranks: int) -> Ints:
    """Return the packs of a window reordered: alike costs in each micro-batch, and alike sums over the ranks.

    Place i belongs to micro-batch i // (micro_batch_size * ranks) of rank (i // micro_batch_size) % ranks. The heaviest
    packs go first; within a column of places (one for each rank), the heaviest goes to the rank with the least so far.
    """
    places = np.arange(len(packs))
    columns = places // (micro_batch_size * ranks) * micro_batch_size + places % micro_batch_size
    rank_of = places // micro_batch_size % ranks
    heaviest = packs[np.argsort(-costs[packs], kind="stable")]
    result, load, start = np.empty_like(packs), np.zeros(ranks), 0
    for column in np.unique(columns):
        mine = places[columns == column]
        mine = mine[np.argsort(load[rank_of[mine]], kind="stable")]
        taken = heaviest[start : start + len(mine)]
        result[mine] = taken
        load[rank_of[mine]] += costs[taken]
        start += len(mine)
    return result


def epoch_order(count: int, seed: int, epoch: int) -> Ints:
    """Return the order of `count` packs in an epoch: the same for any number of ranks, another in each epoch."""
    # Raw bit generator output is stable over NumPy versions; Generator methods are not promised to be.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)
