"""The examples of an epoch, their order and their distribution over ranks; all of it depends on the seed only."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from arctic_hydra.data.arrays import Array, Ints

MEGA_BATCHES = 50
"""Global batches whose examples are sorted by length together: enough to group well, few enough to stay random."""


def mix(sources: Array, sizes: Array, weights: Sequence[float], seed: int, epoch: int) -> Ints:
    """Return the examples of an epoch as indices, with repetition; they are resampled in each epoch.

    `sizes` is the unit of the weights: 1 for each example, or its tokens. The sum of all sizes is divided among the sources
    by weight. A source that is smaller than its share is repeated as a whole before any example is drawn once more.
    """
    total, exact = int(sizes.sum()), [Fraction(repr(float(weight))) for weight in weights]
    parts: list[Ints] = []
    for source, weight in enumerate(exact):
        mine = np.flatnonzero(sources == source)
        if not len(mine):
            continue
        whole, left = divmod(total * weight / sum(exact), int(sizes[mine].sum()))
        drawn = mine[epoch_order(len(mine), seed + 1 + source, epoch)]
        reached = np.cumsum(sizes[drawn])
        rest = drawn[: int(np.searchsorted(reached, int(left), side="right"))]
        parts += [np.tile(mine, whole), rest]
    return np.sort(np.concatenate(parts)).astype(np.int64)


def grouped_order(lengths: Array, batch: int, seed: int, epoch: int) -> Ints:
    """Return an order whose global batches hold rows of similar length; the order of the batches is random."""
    order = epoch_order(len(lengths), seed, epoch)
    step = batch * MEGA_BATCHES
    chunks = [order[start : start + step] for start in range(0, len(order), step)]
    by_length = np.concatenate([chunk[np.argsort(-lengths[chunk], kind="stable")] for chunk in chunks] or [order])
    whole = len(by_length) // batch
    shuffled = by_length[: whole * batch].reshape(whole, batch)[epoch_order(whole, seed + 1, epoch)]
    return np.concatenate([shuffled.reshape(-1), by_length[whole * batch :]])  # the partial batch stays last


def balanced(packs: Ints, costs: Array, micro_batch_size: int, ranks: int) -> Ints:
    """Return the packs of one step reordered: similar costs within each micro-batch, similar sums over the ranks.

    Slot i belongs to micro-batch i // (micro_batch_size * ranks) of rank (i // micro_batch_size) % ranks. Packs are
    assigned by descending cost; within a column of slots (one per rank), the heaviest pack goes to the rank with the
    lowest load so far.
    """
    slots = np.arange(len(packs))
    columns = slots // (micro_batch_size * ranks) * micro_batch_size + slots % micro_batch_size
    rank_of = slots // micro_batch_size % ranks
    heaviest = packs[np.argsort(-costs[packs], kind="stable")]
    result, load, start = np.empty_like(packs), np.zeros(ranks), 0
    for column in np.unique(columns):
        mine = slots[columns == column]
        mine = mine[np.argsort(load[rank_of[mine]], kind="stable")]
        taken = heaviest[start : start + len(mine)]
        result[mine] = taken
        load[rank_of[mine]] += costs[taken]
        start += len(mine)
    return result


def drawn(count: int, probability: float, seed: int, epoch: int) -> Array:
    """Return which of `count` packs an event of this probability hits in an epoch; independent of the number of ranks."""
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return (keys >> np.uint64(11)) / 2**53 < probability


def epoch_order(count: int, seed: int, epoch: int) -> Ints:
    """Return the order of `count` packs in an epoch: independent of the number of ranks, different in each epoch."""
    # NumPy guarantees a stable raw bit generator output across versions, but not the methods of Generator.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)
