"""Mismatched pairs: the prompt of each example with the answer of another row of its source.

Their partners are drawn once, from the stored examples alone, so they depend neither on batches, ranks and order nor on the
seed of the run.
"""

from __future__ import annotations

import hashlib

import numpy as np

from arctic_hydra.data.arrays import Array, Ints
from arctic_hydra.data.cache.token_store import JoinedStore
from arctic_hydra.data.documents import Side

_DRAW = "mismatched-1"
"""Part of the store's key; change it when the same examples get other partners."""


class LabelledStore:
    """Answers with a label and their mismatched pairs; an example takes the place of both, but only its own tokens count."""

    def __init__(self, flat: JoinedStore, examples: Ints, max_length: int) -> None:
        """Draw partners among `examples` of `flat`, which come from two rows of each source at least."""
        assert flat.labels is not None, "the entries of labelled data have labels"
        self.flat, self.labels, self.report = flat, flat.labels, flat.report
        self.key = hashlib.sha256(f"{flat.key} {_DRAW}".encode()).hexdigest()[:32]
        self.mismatched = Mismatched(flat, examples, max_length)
        self.lengths = flat.lengths + self.mismatched.lengths
        self.tokens = self.longest = flat.lengths
        self.supervised, self.rows, self.sources = flat.supervised, flat.rows, flat.sources

    def __len__(self) -> int:
        return len(self.lengths)

    def documents(self, index: int) -> list[int]:
        """Return the document of one example: its own number, in `flat` and in `mismatched`."""
        return [index]

    def sides(self, index: int) -> list[Side]:
        """Return the documents of one example with what to call them."""
        own = "desirable" if self.labels[index] else "undesirable"
        return [(own, self.flat, index), ("mismatched", self.mismatched, index)]


class Mismatched:
    """The mismatched pairs of some examples, by the numbers of these; implements `data.documents.Documents`.

    The end of an answer is truncated where the pair would be longer than `max_length`; its first token always fits.
    """

    def __init__(self, flat: JoinedStore, examples: Ints, max_length: int) -> None:
        self._flat = flat
        self._partners = np.arange(len(flat))
        self._partners[examples] = examples[draw_partners(flat.sources[examples], flat.rows[examples])]
        self._starts = np.zeros(len(flat), dtype=np.int64)
        self._starts[examples] = [int(flat.mask(int(example)).argmax()) for example in examples]
        self.key = hashlib.sha256(f"{flat.key} {_DRAW} {max_length}".encode() + self._partners.tobytes()).hexdigest()[
            :32
        ]
        answers = flat.lengths - self._starts
        self.lengths = np.minimum(max_length, self._starts + answers[self._partners])
        self.sources = flat.sources

    def ids(self, index: int) -> Array:
        """Return the int32 token ids of one pair."""
        start, answer = self._parts(index)
        return np.concatenate([self._flat.ids(index)[:start], self._flat.ids(int(self._partners[index]))[answer]])

    def mask(self, index: int) -> Array:
        """Return the uint8 mask of one pair, 1 for each token whose log-probability counts."""
        start, answer = self._parts(index)
        return np.concatenate([np.zeros(start, np.uint8), self._flat.mask(int(self._partners[index]))[answer]])

    @property
    def predicted(self) -> Array:
        """Number of supervised positions of each pair in a batch."""
        return np.array([int(self.mask(index)[1:].sum()) for index in range(len(self.lengths))], dtype=np.int64)

    def _parts(self, index: int) -> tuple[int, slice]:
        """Return the length of the prompt, and where the answer is in its own example."""
        start, begin = int(self._starts[index]), int(self._starts[self._partners[index]])
        return start, slice(begin, begin + int(self.lengths[index]) - start)


def draw_partners(sources: Array, rows: Array) -> Ints:
    """Return for each example the position of one of another row of its source, drawn at random with a constant seed.

    `rows` ascend within each source. The rows of a source form a random cycle, in which each gets the answers of the next.
    """
    partners = np.empty(len(rows), dtype=np.int64)
    for source in np.unique(sources):
        mine = np.flatnonzero(sources == source)
        starts = np.flatnonzero(np.diff(rows[mine], prepend=-1))
        sizes = np.diff(np.append(starts, len(mine)))
        cycle = np.argsort(np.random.PCG64(0).random_raw(len(starts)), kind="stable")
        following = np.empty_like(cycle)
        following[cycle] = np.roll(cycle, -1)
        target = np.repeat(following, sizes)
        place = np.arange(len(mine)) - np.repeat(starts, sizes)
        partners[mine] = mine[starts[target] + place % sizes[target]]
    return partners
