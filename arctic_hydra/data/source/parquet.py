"""Parquet files."""

from __future__ import annotations

from typing import ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.source.local_files import LocalSource


@component(group="source", name="parquet")
class ParquetSource(LocalSource):
    """One or more Parquet files."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)
