"""Reads the lines that a running job appends to its `metrics.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra.metrics import parse_row


class Tail:
    """Reads a growing file of JSON lines; starts over if it was truncated (a resumed run drops lines after its checkpoint)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._last = b""
        """The last line before the offset."""

    def new_rows(self) -> list[dict[str, Any]]:
        """Return the complete lines since the last call, without damaged ones, which `read_metrics` reports in the end."""
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._offset - len(self._last))
                if handle.read(len(self._last)) != self._last:
                    self._offset, self._last = handle.seek(0), b""
                text = handle.read()
        except OSError:
            return []
        complete = text.rpartition(b"\n")[0] + b"\n" if b"\n" in text else b""
        self._offset += len(complete)
        lines = complete.splitlines(keepends=True)
        self._last = lines[-1] if lines else self._last
        return [row for line in lines if (row := parse_row(line)) is not None]
