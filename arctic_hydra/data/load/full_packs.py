"""Ways to fill packs to their last token: cut the examples at the packs' ends, repeat them, or leave out the last pack."""

from __future__ import annotations

import numpy as np

from arctic_hydra.data.arrays import Array, Ints
from arctic_hydra.data.documents import Examples, SingleDocuments
from arctic_hydra.data.load.packing import Plan


class Pieces(SingleDocuments):
    """Consecutive pieces of the documents of a store; implements the protocol `Examples`."""

    def __init__(self, store: Examples, examples: Ints, starts: Ints, stops: Ints) -> None:
        """Take tokens [starts[i], stops[i]) of `examples[i]` as piece i; each example has a single document."""
        self.examples = examples
        self.lengths: Array = stops - starts
        self.sources: Array = store.sources[examples]
        self._documents, self._starts, self._stops = store.flat, starts, stops

    def ids(self, index: int) -> Array:
        """Return the int32 token ids of one piece."""
        return self._documents.ids(int(self.examples[index]))[self._starts[index] : self._stops[index]]

    def mask(self, index: int) -> Array:
        """Return the uint8 mask of one piece."""
        return self._documents.mask(int(self.examples[index]))[self._starts[index] : self._stops[index]]


def cut_to_packs(store: Examples, chosen: Ints, capacity: int) -> tuple[Pieces, Plan]:
    """Return the chosen examples, in order, cut so that every pack but the last has exactly `capacity` tokens.

    The rest of an example that a pack's end cuts becomes a separate document at the start of the next pack.
    """
    lengths = store.lengths[chosen].astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    packs = np.arange(0, total, capacity)
    cuts = np.unique(np.concatenate([[0], ends, packs])).astype(np.int64)
    starts, stops = cuts[:-1], cuts[1:]
    which = np.searchsorted(ends, starts, side="right")
    first = (ends - lengths)[which]
    bounds = np.searchsorted(starts, np.append(packs, total))
    pieces = Pieces(store, chosen[which], starts - first, stops - first)
    return pieces, Plan(np.arange(len(starts)), bounds, total, capacity)


def without_last(plan: Plan, lengths: Array) -> Plan:
    """Return the plan without its emptiest pack (the last of several) if that one is not full; `lengths` are of all examples."""
    if not len(plan):
        return plan
    tokens = np.add.reduceat(lengths[plan.examples].astype(np.int64), plan.bounds[:-1])
    last = len(tokens) - 1 - int(tokens[::-1].argmin())
    if tokens[last] == plan.capacity:
        return plan
    kept = np.delete(plan.examples, np.arange(plan.bounds[last], plan.bounds[last + 1]))
    bounds = np.concatenate([[0], np.cumsum(np.delete(np.diff(plan.bounds), last))])
    return Plan(kept, bounds, plan.tokens - int(tokens[last]), plan.capacity)


def repeated(lengths: Array, capacity: int) -> Ints:
    """Return all examples, as indices, repeated in order for as long as they fit into one pack; each at least once."""
    count, total = len(lengths), int(lengths.sum())
    if not total:
        return np.arange(count)
    order = np.tile(np.arange(count), capacity // total + 1)
    fitting = int(np.searchsorted(np.cumsum(lengths[order]), capacity, side="right"))
    return order[: max(count, fitting)]
