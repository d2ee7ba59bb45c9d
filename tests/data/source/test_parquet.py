"""Parquet files."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra.data.source.parquet import ParquetSource
from tests.data.source.files import assert_reads_rows, write


def test_rows_are_read(tmp_path: Path) -> None:
    assert_reads_rows(write(tmp_path / "a.parquet"), ParquetSource)
