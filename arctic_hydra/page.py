"""Pages for people to look at: one HTML file with its style and its plots in it, readable without a network."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "pre,.chat{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.5 ui-monospace,monospace;background:#f6f6f4;"
    "padding:1em;border-radius:4px}pre{white-space:pre;overflow-x:auto}.chat{color:#666}"
    "mark{background:#cdebd0;color:#0a3d16}h1{font-size:1.5em}h2{font-size:1.15em;margin:2em 0 .5em}"
    "h3{font-size:1em;margin:2em 0 .5em}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{text-align:left;padding:.25em .9em .25em 0;border-bottom:1px solid #e4e4e0;vertical-align:top}"
    "th{font-weight:600}.table{overflow-x:auto}svg{max-width:100%;height:auto}"
)

escape = html.escape


def page(title: str, body: Iterable[str]) -> str:
    """Return a complete HTML document; `body` holds parts that are HTML already."""
    head = (
        f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style>"
    )
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table; every cell is shown as the text that it is."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in headings)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<div class=table><table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def figure(width_inches: float = 9.0, height_inches: float = 3.2) -> Figure:
    """Return an empty matplotlib figure in the pages' style, without a display and outside pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def svg(figure: Figure) -> str:
    """Return a figure as an `<svg>` element whose text stays text; the same figure always gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "arctic_hydra"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]
