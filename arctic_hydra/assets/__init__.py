"""Files that come with the package: a small chat set and the tokenizer made from it (`build_assets.py` makes both)."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).resolve().parent
"""Directory of the bundled files."""
