"""Self-contained HTML pages, with inlined style and plots, readable offline."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from arctic_hydra.report.drawing import Drawing

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "pre,.chat{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.5 ui-monospace,monospace;background:#f6f6f4;"
    "padding:1em;border-radius:4px}pre{white-space:pre;overflow-x:auto}.command{white-space:pre-wrap}.chat{color:#666}"
    "mark{background:#cdebd0;color:#0a3d16}h1{font-size:1.5em}h2{font-size:1.15em;margin:2em 0 .5em}"
    "h3{font-size:1em;margin:2em 0 .5em}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td{white-space:pre-wrap}th,td{text-align:left;padding:.25em .9em .25em 0;border-bottom:1px solid #e4e4e0;vertical-align:top}"
    "th{font-weight:600}.table{overflow-x:auto}svg{max-width:100%;height:auto}.note{color:#666}"
    ".status{padding:.15em .6em;border-radius:1em;background:#e8e8e4;font-weight:600}.finished{background:#cdebd0}"
    ".stopped{background:#fdeec2}.failed,.died{background:#f8d3cf}details{margin:1em 0}summary{cursor:pointer}"
    ".cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(11em,1fr));gap:.6em;margin:1em 0}"
    ".cards div{background:#f6f6f4;border-radius:4px;padding:.5em .8em}dt{color:#666;font-size:.85em}"
    "dd{margin:0;font-variant-numeric:tabular-nums}.plots{display:grid;gap:1em;margin:1.5em 0;"
    "grid-template-columns:repeat(auto-fit,minmax(min(24em,100%),1fr))}figure{margin:0}.plots svg{width:100%}"
)
COLORS = ("#2f6db3", "#d9792b", "#3f9458", "#a8435c", "#7b5fb0", "#8a7a3d")
"""Colors of curves, in the order of use."""

escape = html.escape
# Control characters (C0, DEL, C1) except newline and tab, and those that override the text direction.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def page(title: str, body: Iterable[str]) -> str:
    """Return a complete HTML document; `body` holds HTML fragments."""
    head = (
        f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style>"
    )
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table; cells are escaped."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in headings)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<div class=table><table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def figure(width_inches: float = 9.0, height_inches: float = 3.2) -> Drawing:
    """Return an empty matplotlib figure, without a display and outside pyplot's global state."""
    from arctic_hydra.report.drawing import Drawing

    return Drawing(figsize=(width_inches, height_inches), layout="constrained")


def plot(title: str, below: str) -> tuple[Drawing, Axes]:
    """Return a small figure with one pair of axes: a light grid, no frame, labels that are readable on a phone."""
    drawn = figure(4.6, 2.9)
    axes = drawn.add_subplot()
    axes.set_title(label(title), loc="left", fontsize=11, fontweight="bold", color="#222")
    axes.set_xlabel(below, fontsize=9, color="#666")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbb")
    axes.grid(axis="y", color="#e8e8e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors="#666", length=0, which="both")
    return drawn, axes


def label(text: str, most: int = 0) -> str:
    """Return text with `$` escaped, which matplotlib would parse as math; with `most`, shortened in the middle to that length."""
    if most and len(text) > most:
        text = f"{text[: most // 3]}…{text[len(text) - (most - most // 3 - 1) :]}"
    return text.replace("$", r"\$")


def svg(figure: Drawing) -> str:
    """Return a figure as an `<svg>` element with real text; the output for a figure is deterministic."""
    return figure.svg()


def escape_controls(text: str) -> str:
    """Return text with visible symbols instead of control characters and characters that override the text direction."""
    return _STEERING.sub(lambda match: _sign(ord(match[0])), text)


def _sign(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"‹U+{code:04X}›"
