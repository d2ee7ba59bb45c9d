"""Alpaca rows: instruction, input, output."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.data.formats.alpaca import alpaca_question
from arctic_hydra.data.formats.messages import RowProblem
from arctic_hydra.data.formats.reading import Reading, RowFormat

BAD: list[tuple[dict[str, Any], str]] = [
    ({"instruction": "x"}, "no 'output' column; got the columns instruction"),
    ({"instruction": "x", "output": None}, "output is null, expected a text"),
    ({"instruction": "x", "output": "y", "history": ["z"]}, r"history: expected a list of \[question, answer\]"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_rows_say_what_is_wrong(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowProblem, match=message) as caught:
        Reading(RowFormat.alpaca).read(row)
    assert caught.value.reason == "malformed"


def test_input_follows_the_instruction_on_a_new_line() -> None:
    assert alpaca_question({"instruction": "q", "input": "i"}) == [{"role": "user", "content": "q\ni"}]
