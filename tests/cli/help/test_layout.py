"""Wrapping at any width."""

from __future__ import annotations

import pytest

from arctic_hydra.cli.help.layout import Page, page_for_output


@pytest.mark.parametrize("width", [40, 80, 100])
def test_no_line_is_wider_than_the_page(width):
    page = Page(width)
    page.heading("a head of many words " * 10)
    for left in ("key=1", "trainer.gradient_accumulation_steps=1", "x" * 130):
        for right in ("integer", "one | of | many | values | " * 6, "z" * 130):
            page.row(left, right, "What it is for. " * 9)
            page.row(left, right, column=14)
    assert max(map(len, page.text().splitlines())) <= width
    assert page.text().count("z") == 3 * 2 * 130


def test_a_short_type_is_beside_its_key_and_a_long_one_below():
    page = Page()
    page.row("seed=1", "integer", "Text.")
    page.row("data.format=auto", " | ".join("abcdefghijklmnopqrstuv"))
    first, text, second, below, *_ = page.text().splitlines()
    assert first.split() == ["seed=1", "integer"] and text == "      Text."
    assert second == "  data.format=auto" and below.startswith("      a | b")


def test_heads_are_bold_on_a_terminal_only(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert page_for_output().width == 80
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    page = page_for_output()
    page.heading("Usage")
    assert (page.width, page.text()) == (100, "\x1b[1mUsage\x1b[0m\n")
    monkeypatch.setenv("NO_COLOR", "1")
    page = page_for_output()
    page.heading("Usage")
    assert page.text() == "Usage\n"
