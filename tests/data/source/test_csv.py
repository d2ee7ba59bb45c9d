"""CSV files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.source.csv import CsvSource
from tests.data.source.files import ROWS, assert_reads_rows, write


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_rows_are_read(tmp_path: Path, name: str) -> None:
    assert_reads_rows(write(tmp_path / name), CsvSource)


def test_rows_of_csv_train(tmp_path: Path, tokenizer: Any) -> None:
    from arctic_hydra.distributed import World
    from tests.data.samples import factory

    path = write(tmp_path / "a.csv")
    store = factory(path, sources={"mine": CsvSource(path=str(path))}).process("train", tokenizer, World())
    assert tokenizer.decode(store.ids(0)[store.mask(0).astype(bool)]) == ROWS[0]["answer"] + "<|im_end|>"
    json.dumps(store.report)
