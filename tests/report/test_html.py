"""HTML pages: text stays text, and equal figures are equal bytes."""

from __future__ import annotations

from arctic_hydra.report import html


def test_cells_are_shown_as_the_text_that_they_are() -> None:
    page = html.page("a < b", [html.table(["<key>"], [["<script>alert(1)</script>"], [3]])])
    assert page.startswith("<!doctype html>") and "<title>a &lt; b</title>" in page
    assert "<th>&lt;key&gt;</th>" in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script>" not in page


def test_a_figure_is_one_svg_element_and_the_same_each_time() -> None:
    def drawn() -> str:
        figure, axes = html.plot("loss in $ and $", "step")
        axes.plot([1, 2], [3, 4])
        return html.svg(figure)

    first = drawn()
    assert first == drawn()
    assert first.startswith("<svg") and "loss in $ and $" in first


def test_a_long_label_keeps_its_two_ends() -> None:
    assert html.label("data.sources.ultrachat.sample_ratio", most=12) == "data…e_ratio"
