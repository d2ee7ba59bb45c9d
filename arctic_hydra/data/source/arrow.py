"""Arrow files."""

from __future__ import annotations

from typing import ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.source.local_files import LocalSource


@component(group="source", name="arrow")
class ArrowSource(LocalSource):
    """One or more Arrow files."""

    suffixes: ClassVar[tuple[str, ...]] = (".arrow",)
