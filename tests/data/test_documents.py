"""Tokenized documents: counts of trained tokens, and examples of one document each."""

from __future__ import annotations

import numpy as np

from arctic_hydra.data.documents import Chunk, SingleDocuments


def chunk(lengths: list[int], mask: list[int]) -> Chunk:
    rows = np.arange(len(lengths))
    ids = np.zeros(len(mask), np.int32)
    return Chunk(ids, np.array(mask, np.uint8), np.array(lengths, np.int32), rows)


def test_supervised_tokens_are_counted_per_example() -> None:
    supervised = chunk([3, 1, 2], [0, 1, 1, 0, 1, 1]).supervised
    assert supervised.tolist() == [2, 0, 2] and supervised.dtype == np.int32
    assert chunk([], []).supervised.tolist() == []
    assert chunk([300], [1] * 300).supervised.tolist() == [300], "counted beyond the range of the mask's uint8"


def test_examples_of_one_document_are_their_own_documents() -> None:
    examples = SingleDocuments()
    assert examples.documents(3) == [3] and examples.flat is examples
