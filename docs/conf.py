"""The documentation: `nox -s docs` builds it into `site/`, with warnings as errors."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pygments.lexers.data import YamlLexer
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]

sys.path[:0] = [str(ROOT), str(ROOT / "launchers"), str(ROOT / "docs")]

from reference import write_pages  # noqa: E402  # needs the path above

from arctic_hydra import __version__  # noqa: E402

project = "arctic_hydra"
author = project_copyright = "the arctic_hydra developers"
release = version = __version__
extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_static"]
html_theme = "furo"
html_title = f"arctic_hydra {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
copybutton_prompt_text = "$ "
nitpicky = True

write_pages(ROOT / "docs" / "reference_pages")


def break_keys(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Let long keys and paths break after a dot, a slash, an underscore or an equals sign, as tables on a phone need it."""
    if "body" in context:
        context["body"] = re.sub(
            r'(?<=<span class="pre">)[^<]+',
            lambda code: re.sub(r"(?<=\w)([._/=])(?=\w)", r"\1<wbr>", code[0]),
            context["body"],
        )


def setup(app: Sphinx) -> None:
    """Add what breaks long keys, and name the languages of code blocks that Pygments knows by other names."""
    app.connect("html-page-context", break_keys)
    app.add_lexer("jsonl", YamlLexer)  # which knows comments, too
    app.add_lexer("tsv", TextLexer)
