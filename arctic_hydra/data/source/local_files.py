"""Base of the sources that read files by path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.data.source.base import SampledSource
from arctic_hydra.data.source.discover import find_files
from arctic_hydra.errors import DataError, FieldError

if TYPE_CHECKING:
    from pathlib import Path

    from arctic_hydra.data.rows.base import Rows
    from arctic_hydra.data.rows.shard import Shard


@dataclass(kw_only=True)
class LocalSource(SampledSource):
    """Files by name, directory or pattern; all of their rows are used for any split, apart from its slice."""

    path: Any = "???"
    """File, directory, glob pattern, or a list of these."""

    suffixes: ClassVar[tuple[str, ...]]

    def validate(self) -> None:
        """Refuse split names: files by path have no splits, so a named one would silently get all rows."""
        super().validate()
        problems = []
        name = self.split.partition("[")[0]
        if name not in ("", "train", "eval"):
            what = self.split.removeprefix(name)
            drop = f"split={what}" if what else "path=<its files> alone"
            problems.append(
                ("split", f"got {self.split!r}, but files by path have no splits: all rows are read; pass {drop}")
            )
        if self.split_mapping:
            problems.append(("split_mapping", "has no effect on files by path, which have no splits; remove it"))
        if problems:
            raise FieldError(problems)

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if the path matches no file."""
        try:
            self.files()
        except DataError as error:
            yield f"path: {error}"

    def read(self, split: str) -> Rows:
        """Return the rows of all files, in the order of the list, and within a directory or pattern by name."""
        from arctic_hydra.data.rows.read import read_files

        return read_files(self.files(), self.read_one)

    def read_one(self, path: Path) -> Rows:
        """Return the rows of one file."""
        from arctic_hydra.data.rows.read import read_file

        return read_file(path)

    def shards(self, split: str) -> list[Shard]:
        """Return one shard for each file."""
        from arctic_hydra.data.rows.read import file_shards

        if self.loads_otherwise:
            return super().shards(split)
        return file_shards(self.files(), self.shard_of)

    def shard_of(self, path: Path) -> Shard:
        """Return one file as a shard."""
        from arctic_hydra.data.rows.read import file_shard

        return file_shard(path)

    def content_outline(self, split: str) -> Any:
        """Return name, size and sampled hash of each file."""
        from arctic_hydra.data.rows.fingerprint import fingerprint_files

        return fingerprint_files(self.files())

    def content(self, split: str) -> Any:
        """Return name and content hash of each file."""
        from arctic_hydra.data.rows.fingerprint import hash_files

        return hash_files(self.files())

    def files(self) -> list[Path]:
        """Return the files; raises DataError if there are none."""
        return find_files(self.path if isinstance(self.path, list) else [str(self.path)], self.suffixes)
