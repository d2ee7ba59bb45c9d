"""Writes a page of the documentation for each config group, from what the help pages show."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from arctic_hydra.cli.composition.search_path import hydra_with
from arctic_hydra.cli.help import pages
from arctic_hydra.cli.help.inventory import Inventory
from arctic_hydra.cli.help.layout import Page

_PARTS = {"KEYS OF EVERY OPTION": "Keys of every option", "ONLY WITH": "Only with"}
_CODE = re.compile(r"`[^`]*`")


class MarkdownPage(Page):
    """A help page as Markdown."""

    in_full = True

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._in_part = False

    def heading(self, text: str) -> None:
        """Write a head: first that of the page, then those of parts (`KEYS OF ...`, `ONLY WITH ...`) and of sections in them."""
        if not self._lines:
            title, _, more = text.partition(": ")
            self._lines += [
                f"# {_escaped(title)}",
                "",
                *([f"{_escaped(more[:1].upper() + more[1:])}.", ""] if more else []),
            ]
            return
        if not text:  # only a gap in the terminal
            return
        for capitals, plain in _PARTS.items():
            if text.startswith(capitals):
                self._in_part = True
                self._lines += [f"## {_escaped(text.replace(capitals, plain))}", ""]
                return
        self._lines += [f"{'###' if self._in_part else '##'} {_escaped(text)}", ""]

    def gap(self) -> None:
        """Paragraphs are apart in any case."""

    def say(self, text: str, indent: int = 0) -> None:
        """Write a paragraph."""
        self._lines += [_escaped(text), ""]

    def row(self, left: str, right: str, *below: str, column: int = 0) -> None:
        """Write an entry of a list: its name as code, then what there is to say about it."""
        said = [text for text in (right, *below) if text]
        self._lines += [f"`{left}`", *(f": {_escaped(text)}" for text in said or ["."]), ""]

    def text(self) -> str:
        """Return the page."""
        return "\n".join(self._lines)


def _escaped(text: str) -> str:
    """Return plain text as Markdown that shows it; what is in backquotes stays code."""
    parts, end = [], 0
    for match in [*_CODE.finditer(text), None]:
        start = match.start() if match else len(text)
        parts.append(re.sub(r"([\\*_<>\[\]{}$|~])", r"\\\1", text[end:start]))
        if match:
            parts.append(match[0])
            end = match.end()
    return "".join(parts)


def write_pages(folder: Path) -> None:
    """Write a page for each group, one for the keys of the run itself, and their index."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with hydra_with() as loader:
        known = Inventory(loader)
        written = {"run": MarkdownPage()}
        written["run"].heading("The run itself")
        pages.run_page(written["run"], known)
        for group in known.groups:
            written[group.replace("/", "-")] = page = MarkdownPage()
            pages.group_page(page, known, group)
    rows = [
        f"| [{name}]({name}.md) | {', '.join(f'`{item}`' for item in known.groups.get(name, []))} |" for name in written
    ]
    index = [
        "# Config groups",
        "",
        "| group | options |",
        "|---|---|",
        *rows,
        "",
        "```{toctree}",
        ":hidden:",
        "",
        *written,
        "```",
        "",
    ]
    for name, text in {**{name: page.text() for name, page in written.items()}, "index": "\n".join(index)}.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
