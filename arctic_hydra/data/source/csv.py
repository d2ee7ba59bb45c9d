"""CSV files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.rows.file_kind import check_readable
from arctic_hydra.data.source.local_files import LocalSource

if TYPE_CHECKING:
    from pathlib import Path

    from arctic_hydra.data.rows.base import Rows
    from arctic_hydra.data.rows.shard import Shard


@component(group="source", name="csv")
class CsvSource(LocalSource):
    """One or more CSV files with a header; all values are read as text."""

    delimiter: str = ""
    """Field separator; empty: a comma, or a tab in .tsv files."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")

    def validate(self) -> None:
        """Check that the delimiter is one character."""
        super().validate()
        if len(self.delimiter) > 1:
            raise ValueError(f"delimiter: got {self.delimiter!r}, expected one character")

    def read_one(self, path: Path) -> Rows:
        """Return the rows of one file."""
        from arctic_hydra.data.rows.lines import read_csv

        check_readable(path)
        return read_csv(path, self.delimiter)

    def shard_of(self, path: Path) -> Shard:
        """Return one file as a shard."""
        from arctic_hydra.data.rows.lines import CsvShard

        check_readable(path)
        return CsvShard(path, self.delimiter)

    def content_outline(self, split: str) -> Any:
        """Return name, size and sampled hash of each file, and the delimiter."""
        return [super().content_outline(split), self.delimiter]

    def content(self, split: str) -> Any:
        """Return name and content hash of each file, and the delimiter."""
        return [super().content(split), self.delimiter]
