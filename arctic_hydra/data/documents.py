"""Tokenized documents, as loaders read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from arctic_hydra.data.arrays import Array


@dataclass
class Chunk:
    """Examples as flat arrays, in row order."""

    ids: Array
    """int32, the tokens of all examples one after another."""
    mask: Array
    """uint8, 1 where a token is trained on."""
    lengths: Array
    rows: Array
    """Row number of each example within its source."""

    @property
    def supervised(self) -> Array:
        """Trained tokens of each example, int32; no example is without tokens."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.add.reduceat(self.mask, starts, dtype=np.int32) if len(starts) else np.empty(0, np.int32)


class SingleDocuments:
    """Base of stores whose examples are one document each; part of the protocol `Examples`."""

    def documents(self, index: int) -> list[int]:
        """Return the documents of one example: itself."""
        return [index]

    @property
    def flat(self) -> Self:
        """The documents: the examples themselves."""
        return self


class Examples(Protocol):
    """Prepared examples by index."""

    lengths: Array
    sources: Array
    """Index of each example's source."""

    @property
    def flat(self) -> Documents:
        """The documents that `documents` counts."""

    def documents(self, index: int) -> list[int]:
        """Return the documents of one example: one, or of a preference the chosen and the rejected one."""


class Documents(Protocol):
    """Token sequences by index."""

    lengths: Array
    sources: Array

    def ids(self, index: int) -> Array:
        """Return the int32 token ids of one document."""

    def mask(self, index: int) -> Array:
        """Return the uint8 mask of one document, 1 where a token is trained on."""
