"""Arrow files."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra.data.source.arrow import ArrowSource
from tests.data.source.files import ROWS, assert_reads_rows, write


def test_rows_are_read(tmp_path: Path) -> None:
    assert_reads_rows(write(tmp_path / "a.arrow"), ArrowSource)


def test_arrow_streams_are_read_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.stream").rename(tmp_path / "data.arrow")
    rows = ArrowSource(path=str(path)).rows("train")
    assert rows.take([5]) == [ROWS[5]]
