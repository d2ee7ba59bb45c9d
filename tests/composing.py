"""Composes configs in the test process, as the command line does."""

from __future__ import annotations

from arctic_hydra import config
from arctic_hydra.cli.composition import compose
from arctic_hydra.cli.overrides import normalize
from tests.command import ROOT

GOLDEN = ROOT / "tests" / "golden" / "config_keys.txt"
"""The keys of the default composition."""


def composed(*overrides: str) -> dict:
    """Return the composed config for command-line overrides as plain containers."""
    normalized = [normalize(item) for item in overrides]
    return compose.compose_config(normalized, "config").job


def built(*overrides: str) -> config.Run:
    """Return the checked run for command-line overrides."""
    return config.build(composed(*overrides))
