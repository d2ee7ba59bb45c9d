"""Plain text files."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.rows.file_kind import check_readable
from arctic_hydra.data.source.local_files import LocalSource

if TYPE_CHECKING:
    from pathlib import Path

    from arctic_hydra.data.rows.base import Rows
    from arctic_hydra.data.rows.shard import Shard

ROW_FILES = (".jsonl", ".json", ".parquet", ".arrow", ".csv", ".tsv")


class SampleBy(Enum):
    """Unit of a text file that becomes one row."""

    line = "line"
    paragraph = "paragraph"
    document = "document"


@component(group="source", name="text")
class TextSource(LocalSource):
    """One or more text files, or files of rows (.jsonl, .parquet, ...) with a column of texts."""

    sample_by: SampleBy = SampleBy.line
    """Whether a line, a paragraph (ended by a blank line) or the whole file is one text."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md", *ROW_FILES)

    def read_one(self, path: Path) -> Rows:
        """Return the rows of one file."""
        from arctic_hydra.data.rows.lines import read_text
        from arctic_hydra.data.rows.read import read_file

        check_readable(path)
        return read_file(path) if path.suffix in ROW_FILES else read_text(path, self.sample_by.value)

    def shard_of(self, path: Path) -> Shard:
        """Return one file as a shard; unless texts are lines, the whole file is read into memory."""
        from arctic_hydra.data.rows.columnar import IndexedShard
        from arctic_hydra.data.rows.lines import TextLinesShard
        from arctic_hydra.data.rows.read import file_shard

        check_readable(path)
        if path.suffix in ROW_FILES:
            return file_shard(path)
        return TextLinesShard(path) if self.sample_by is SampleBy.line else IndexedShard(self.read_one(path))

    def content_outline(self, split: str) -> Any:
        """Return name, size and sampled hash of each file, and the unit of texts."""
        return [super().content_outline(split), self.sample_by.value]

    def content(self, split: str) -> Any:
        """Return name and content hash of each file, and the unit of texts."""
        return [super().content(split), self.sample_by.value]
