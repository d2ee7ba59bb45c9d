"""Figures as text, and in a notebook."""

from __future__ import annotations

from arctic_hydra.report.drawing import Drawing


def drawn() -> Drawing:
    figure = Drawing(figsize=(2, 1))
    figure.add_subplot().set_title("<loss>")
    return figure


def test_a_figure_is_always_the_same_text() -> None:
    text = drawn().svg()
    assert text == drawn().svg() and text.startswith("<svg") and "&lt;loss&gt;" in text


def test_a_notebook_shows_it_on_white() -> None:
    assert "fill: #ffffff" in drawn()._repr_svg_() and "fill: #ffffff" not in drawn().svg()
