"""The conversations that are part of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_hydra.assets import ASSETS
from arctic_hydra.component import component
from arctic_hydra.data.source.base import SampledSource
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from arctic_hydra.data.rows.base import Rows
    from arctic_hydra.data.rows.shard import Shard


@component(group="source", name="bundled")
class BundledSource(SampledSource):
    """957 training and 100 evaluation conversations of GSM8K in UltraChat's layout; works offline."""

    def read(self, split: str) -> Rows:
        """Return the rows of `train_sft` (train) or `test_sft` (eval)."""
        from arctic_hydra.data.rows.read import read_file

        return read_file(self._file(split))

    def shards(self, split: str) -> list[Shard]:
        """Return the file of the split as the only shard."""
        from arctic_hydra.data.rows.read import file_shards

        if self.loads_otherwise:
            return super().shards(split)
        return file_shards([self._file(self.split_name(split))])

    def content(self, split: str) -> Any:
        """Return name and content hash of the file."""
        from arctic_hydra.data.rows.fingerprint import hash_files

        return hash_files([self._file(split)])

    def _file(self, split: str) -> Path:
        names = {"train": "train_sft", "eval": "test_sft"}
        path = ASSETS / "chat" / f"{names.get(split, split)}.jsonl"
        if not path.is_file():
            raise DataError(f"the bundled data has no split {split!r}; expected train (train_sft) or eval (test_sft)")
        return path
