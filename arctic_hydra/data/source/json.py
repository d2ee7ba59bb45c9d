"""JSON and JSON Lines files."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.component import component
from arctic_hydra.data.source.base import SampledSource
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from arctic_hydra.data.source.rows import Rows


@component(group="source", name="json")
class JsonSource(SampledSource):
    """One or more JSON or JSON Lines files; the format is told by content, all rows are used whatever the split."""

    path: str = "???"
    """File, directory (every .json and .jsonl file in it) or glob pattern."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem when the path matches no file."""
        try:
            self._files()
        except DataError as error:
            yield f"path: {error}"

    def read(self, split: str) -> Rows:
        """Return the rows of every file, in the order of their names."""
        from arctic_hydra.data.source.files import read_files

        return read_files(self._files())

    def content(self, split: str) -> Any:
        """Return name and content hash of each file."""
        from arctic_hydra.data.source.files import hash_files

        return hash_files(self._files())

    def _files(self) -> list[Path]:
        path = Path(self.path).expanduser()
        if path.is_file():
            return [path]
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
            if not found:
                raise DataError(f"{path}: the directory holds no .json or .jsonl file; expected at least one")
            return found
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not matches:
            raise DataError(
                f"{path}: no such file ({path.absolute()}); expected a JSON or JSON Lines file, a directory of "
                f"them or a glob pattern; check the path"
            )
        return matches
