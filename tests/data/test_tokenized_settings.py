"""Settings of tokenized data, and the sizes that follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_hydra.errors import FieldError
from tests.data.samples import factory


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (1, None)),
        ({"pad_to": "div_length"}, (256, None)),
        ({"pad_to": "div_length", "div_length": 64}, (64, None)),
        ({"pad_to": "max_length"}, (1, 3 * 1024)),
        ({"pad_to": "max_length", "packing": False}, (1, 1024)),
    ],
)
def test_rows_are_padded_as_asked(fields: dict[str, object], expected: tuple[int, int | None], tmp_path: Path) -> None:
    data = factory(tmp_path / "a.jsonl", max_length="1Ki", **fields)
    assert (data.row_multiple, data.padded_row_tokens(3)) == expected
    assert (data.row_tokens, data.pack_tokens, data.packs) == (1024, 1024, fields.get("packing", True))


def test_shares_of_a_split_are_numbers_once_the_data_is_made(tmp_path: Path) -> None:
    data = factory(tmp_path / "a.jsonl", train_eval_split=["90%", "10%"])
    assert data.train_eval_split == [0.9, 0.1] and data.has_evaluation
    assert not factory(tmp_path / "a.jsonl").has_evaluation
    with pytest.raises(FieldError, match="train_eval_split"):
        factory(tmp_path / "a.jsonl", train_eval_split=["most", 0.1])
