"""Parses the command line: Hydra's flags and overrides, and which of them are refused."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from arctic_hydra import config
from arctic_hydra.cli import hydra_parser
from arctic_hydra.cli.composition.compose import Composed
from arctic_hydra.cli.overrides import is_hydra_override
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import shorten
from arctic_hydra.migrate import recipe
from arctic_hydra.migrate.key_map import advice as advice_of_others
from arctic_hydra.run_directory import PROGRAM


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return Hydra's flags and the overrides; raises ConfigError for those that do not exist or have no effect here."""
    options, unknown = hydra_parser.parser().parse_known_intermixed_args(list(arguments))
    for problem in (
        *map(recipe.refusal, [*options.overrides, *(item.partition("=")[2] for item in unknown)]),
        recipe.refused_name(options.config_name, options.config_dir),
    ):
        if problem:
            raise ConfigError(problem)
    if unknown:
        advice = advice_of_others(unknown[0].partition("=")[0].lstrip("-").replace("-", "_"))
        raise ConfigError(f"{unknown[0]}: there is no such option; {advice or f'see {PROGRAM} --help'}")
    if options.config_name is None:
        options.config_name = "config"
    name = options.config_name
    if not (name.strip() and name.isprintable()):
        raise ConfigError(f"--config-name: got {shorten(name)}, expected the name of a whole config, without .yaml")
    if options.config_dir is not None and not os.path.isdir(options.config_dir):
        raise ConfigError(f"--config-dir: got {shorten(options.config_dir)}, not a directory")
    for flag, value in (("--config-path", options.config_path), ("--experimental-rerun", options.experimental_rerun)):
        if value:
            raise ConfigError(f"{flag}: has no effect here; add options and whole configs with --config-dir DIR")
    return options


def is_launched(composed: Composed, overrides: Sequence[str]) -> bool:
    """Whether a launcher other than Hydra's basic one is to run the config, even without `-m`.

    A launcher that an experiment selects applies to training only.
    """
    is_training = composed.job["task"] == config.Task.train.name
    launched = is_training or any(is_hydra_override(item, "launcher") for item in overrides)
    return launched and composed.choices["hydra/launcher"] != "basic"


def refuse_hydra_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError for overrides of Hydra's own node, which a single run does not use."""
    for override in overrides:
        if is_hydra_override(override) and not is_hydra_override(override, "searchpath"):
            raise ConfigError(
                f"{override.partition('=')[0]}: has no effect on a single run; pass -m for a sweep, or remove it"
            )
