"""Config files are read once for all jobs of a sweep."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra.cli import compose
from arctic_hydra.cli.config_sources import ConfigCache


def test_a_file_edited_after_the_first_composition_is_not_read_again():
    option = Path("mine/experiment/mine.yaml")
    option.parent.mkdir(parents=True)
    option.write_text("# @package _global_\nseed: 5\n")
    cache = ConfigCache()
    for _ in range(2):
        assert compose.compose_config(["experiment=mine"], "config", "mine", cache).job["seed"] == 5
        option.write_text("# @package _global_\nseed: 6\n")
    assert compose.compose_config(["experiment=mine"], "config", "mine").job["seed"] == 6


def test_a_composition_does_not_change_what_is_cached():
    cache = ConfigCache()
    assert compose.compose_config(["seed=7"], "config", cache=cache).job["seed"] == 7
    assert compose.compose_config([], "config", cache=cache).job["seed"] == 42
