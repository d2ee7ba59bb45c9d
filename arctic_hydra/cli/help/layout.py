"""The layout of a help page: headings, paragraphs and rows, wrapped at the width of the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import ClassVar

PLAIN_WIDTH, LARGEST_WIDTH, SMALLEST_WIDTH = 80, 100, 40
"""Columns of a page that is not for a terminal, and the limits of one that is."""
_INDENT = 6
_COLUMN = 42
"""Where the second column of a row begins."""


class Page:
    """A page that is built from top to bottom; `text()` returns it."""

    in_full: ClassVar[bool] = False
    """Whether a list shows all that there is to say about an entry, instead of its first sentence."""

    def __init__(self, width: int = PLAIN_WIDTH, bold: bool = False) -> None:
        self.width, self._bold = width, bold
        self._lines: list[str] = []

    def heading(self, text: str) -> None:
        """Add a heading after an empty line, or the line alone for an empty heading; bold if the page is for a terminal."""
        self.gap()
        self._lines += [f"\x1b[1m{line}\x1b[0m" if self._bold else line for line in self._wrapped(text, 0)]

    def gap(self) -> None:
        """Add an empty line, unless the page is empty or ends in one."""
        if self._lines and self._lines[-1]:
            self._lines.append("")

    def say(self, text: str, indent: int = 0) -> None:
        """Add a paragraph."""
        self._lines += self._wrapped(text, indent)

    def row(self, left: str, right: str, *below: str, column: int = _COLUMN) -> None:
        """Add a name and what it is in a second column, or below if it is too long for that; then indented paragraphs."""
        first = f"  {left}"
        hanging = max(column, len(first) + 2)
        lines = self._wrapped(right, hanging) if hanging + _INDENT < self.width else []
        if lines and (len(lines) == 1 or (hanging == column <= self.width // 2)):
            self._lines += [f"{first:<{hanging}}{lines[0][hanging:]}", *lines[1:]]
        else:
            self._lines += [*self._wrapped(left, 2), *self._wrapped(right, _INDENT)]
        for text in below:
            self._lines += self._wrapped(text, _INDENT)

    def _wrapped(self, text: str, indent: int) -> list[str]:
        space = " " * indent
        return textwrap.wrap(text, self.width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)

    def text(self) -> str:
        """Return the page, with a line break at its end."""
        return "\n".join(self._lines) + "\n"


def page_for_output() -> Page:
    """Return an empty page for standard output: as wide as the terminal within limits, plain in a pipe."""
    if not sys.stdout.isatty():
        return Page()
    width = max(SMALLEST_WIDTH, min(shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns, LARGEST_WIDTH))
    return Page(width, bold="NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb")
