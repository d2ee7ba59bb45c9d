"""Hydra's own parser of flags, so that none is missing here; nothing public makes it."""

from __future__ import annotations

import argparse

from hydra._internal.utils import get_args_parser


def parser() -> argparse.ArgumentParser:
    """Return a new parser of Hydra's flags and of overrides, which accepts no abbreviations."""
    made = get_args_parser()
    made.allow_abbrev = False  # the `--config` of other programs is not one of our flags
    return made


def actions(made: argparse.ArgumentParser | None = None) -> list[argparse.Action]:
    """Return the flags of a parser, by default of a new one; argparse has no public name for them."""
    return (made or parser())._actions
