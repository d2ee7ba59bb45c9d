"""Executes a notebook, or a script as its only cell, as a notebook does: `python -m tests.api.cells FILE`.

All cells share one namespace, and the value of a last expression is shown as HTML if it has a representation for notebooks.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any


def cells(path: Path) -> list[str]:
    """Return the cells of a notebook, or the whole script."""
    if path.suffix != ".ipynb":
        return [path.read_text()]
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def execute(source: str, names: dict[str, Any]) -> None:
    """Execute a cell, and print what a notebook shows of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        forms = [getattr(value, name)() for name in ("_repr_html_", "_repr_svg_") if hasattr(value, name)]
        if value is not None:
            print(next((form for form in forms if form is not None), repr(value)))


if __name__ == "__main__":
    names: dict[str, Any] = {}
    for source in cells(Path(sys.argv[1])):
        execute(source, names)
