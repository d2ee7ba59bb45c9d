"""JSON and JSON Lines files."""

from __future__ import annotations

from typing import ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.source.local_files import LocalSource


@component(group="source", name="json")
class JsonSource(LocalSource):
    """One or more JSON or JSON Lines files; the format is detected from the content."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl")
