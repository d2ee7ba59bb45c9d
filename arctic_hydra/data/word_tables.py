"""What `words` looks up: words, and stretches of several words, with their token ids."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from arctic_hydra.data.arrays import Array

END = "\0"
"""A stretch without ids: what stands between two texts."""
LOSSY = 1
"""Number of every stretch with a word that its tokens do not give back; it has no ids."""
MOST_STRETCHES, MOST_IDS = 1 << 19, 1 << 23
"""What `Stretches` hold before they are full: bounds their memory."""


class LossyWordError(Exception):
    """A word that its tokens do not give back."""


class WordTable(dict[str, bytes]):
    """Words to their token ids, as int32 bytes; a word that is missing is encoded by the tokenizer's model."""

    def __init__(self, backend: Any, to_bytes: Any) -> None:
        super().__init__()
        self._backend, self._to_bytes = backend, to_bytes

    def __missing__(self, word: str) -> bytes:
        ((written, _),) = self._to_bytes.pre_tokenize_str(word)
        ids = [token.id for token in self._backend.model.tokenize(written)]
        if self._backend.decode(ids, skip_special_tokens=False) != word:
            raise LossyWordError
        self[word] = found = np.array(ids, np.int32).tobytes()
        return found


class Stretches(dict[str, int]):
    """Stretches of text to numbers; the ids of all of them one after another."""

    def __init__(self, added: dict[str, int], words: Callable[[str], Iterable[bytes]]) -> None:
        super().__init__()
        self._added, self._words = added, words
        self.clear()

    def __missing__(self, stretch: str) -> int:
        try:
            self._ids.frombytes(b"".join(self._words(stretch)))
        except LossyWordError:
            self[stretch] = LOSSY
            return LOSSY
        self[stretch] = number = self._close()
        return number

    def is_full(self) -> bool:
        """Whether it is time to forget."""
        return len(self) > MOST_STRETCHES or len(self._ids) > MOST_IDS

    def clear(self) -> None:
        """Forget all but the added tokens."""
        super().clear()
        self._ids, self._ends = array("i"), array("q", [0, 0])  # number 1, LOSSY, has no ids
        self[END] = self._close()
        for token, index in self._added.items():
            self._ids.append(index)
            self[token] = self._close()

    def _close(self) -> int:
        self._ends.append(len(self._ids))
        return len(self._ends) - 1

    def joined(self, numbers: Array) -> tuple[Array, Array]:
        """Return the ids of stretches one after another, and how many stand before each stretch and before the end."""
        all_ids, ends = np.frombuffer(self._ids, np.int32), np.frombuffer(self._ends, np.int64)
        first = ends[numbers - 1]
        counts = ends[numbers] - first
        before = np.concatenate([[0], np.cumsum(counts)])
        return all_ids[np.repeat(first - before[:-1], counts) + np.arange(before[-1])], before
