"""Tokenized documents in the form that loaders read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from arctic_hydra.data.arrays import Array


@dataclass
class Chunk:
    """Tokenized examples as flat arrays, in the order of their rows."""

    ids: Array
    """int32, the tokens of all examples concatenated."""
    mask: Array
    """uint8, 1 for each token that is trained on."""
    lengths: Array
    rows: Array
    """Row number of each example within its source."""
    labels: Array | None = None
    """uint8, 1 for each example with a desirable answer; None for data without labels."""
    margins: Array | None = None
    """float32, the margin of the pair of each example, NaN for a pair without one; None where margins are not read."""

    @property
    def supervised(self) -> Array:
        """Number of trained tokens of each example, int32; every example has at least one token."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.add.reduceat(self.mask, starts, dtype=np.int32) if len(starts) else np.empty(0, np.int32)


Side = tuple[str, Any, int]
"""What to call a document of an example, the `Documents` that hold it, and its index there."""


class SingleDocuments:
    """Base of stores whose examples consist of one document each; part of the protocol `Examples`."""

    lengths: Array

    def documents(self, index: int) -> list[int]:
        """Return the document of one example: the example itself."""
        return [index]

    def sides(self, index: int) -> list[Side]:
        """Return the documents of one example with what to call them: nothing, as there is only one."""
        return [("", self, index)]

    @property
    def flat(self) -> Self:
        """The documents, which are the examples themselves."""
        return self

    @property
    def tokens(self) -> Array:
        """Tokens of each example, as statistics count them."""
        return self.lengths

    @property
    def longest(self) -> Array:
        """Tokens of the longest document of each example, which `max_length` limits."""
        return self.lengths


class Examples(Protocol):
    """Tokenized examples by index."""

    lengths: Array
    sources: Array
    """Index of each example's source."""

    @property
    def flat(self) -> Documents:
        """The documents that `documents` refers to."""

    def documents(self, index: int) -> list[int]:
        """Return the documents of one example: one, or for a preference the chosen and the rejected one."""


class Documents(Protocol):
    """Token sequences by index."""

    lengths: Array
    sources: Array

    def ids(self, index: int) -> Array:
        """Return the int32 token ids of one document."""

    def mask(self, index: int) -> Array:
        """Return the uint8 mask of one document, 1 for each token that is trained on."""
