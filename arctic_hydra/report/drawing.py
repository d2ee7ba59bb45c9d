"""Figures that a page holds as text, and that a notebook shows by themselves."""

from __future__ import annotations

import io

from matplotlib import rc_context
from matplotlib.figure import Figure


class Drawing(Figure):
    """A matplotlib figure outside pyplot's global state, which needs no display."""

    def svg(self, *, transparent: bool = True) -> str:
        """Return it as an `<svg>` element with real text; the output for a figure is deterministic."""
        buffer = io.StringIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "arctic_hydra"}):
            self.savefig(buffer, format="svg", metadata={"Date": None}, transparent=transparent)
        return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]

    def _repr_svg_(self) -> str:
        return self.svg(transparent=False)  # its text is dark, and so may the notebook be
