"""Reports of a source's rows: warnings, and the error when no example is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from tests.data.samples import chat, factory, geometry, write_lines


def test_nothing_left_is_an_error_with_a_table(tmp_path: Path, tokenizer: Any) -> None:
    rows = [chat("q", "word " * 100), chat("word " * 100, "a")]
    path = write_lines(tmp_path / "long.jsonl", rows)
    table = r"source \| rows \| kept \| overlong\n  data\.sources\.mine \| 2 \| 0 \| 2\n"
    with pytest.raises(DataError, match=rf"(?s)no examples left after filtering.*{table}.*raise data\.max_length"):
        factory(path, max_length=20).build(tokenizer, geometry())


@pytest.mark.parametrize(("empty", "warned"), [(2, True), (1, False)])
def test_many_rows_without_supervised_tokens_are_a_warning_from_the_cache_too(
    empty: int, warned: bool, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    untrained = chat("q", "a")
    untrained["messages"][1]["weight"] = 0
    path = write_lines(tmp_path / "rows.jsonl", [chat("q", "a")] * (10 - empty) + [untrained] * empty)
    for _ in range(2):
        caplog.clear()
        factory(path).process("train", tokenizer, World())
        said = f"data.sources.mine: {empty} of 10 rows were dropped because they have no supervised token; check that"
        assert (said in caplog.text) is warned
