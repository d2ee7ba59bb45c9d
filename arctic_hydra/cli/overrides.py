"""The grammar of overrides: numbers, split slices, free-form dictionaries and sweeps."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from itertools import islice

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from arctic_hydra.cli.search_path import hydra_with
from arctic_hydra.component import registered
from arctic_hydra.errors import ConfigError
from arctic_hydra.files import code_file
from arctic_hydra.human_numbers import parse_human_number

FREE_FORM_OF_PLUGINS = {"additional_parameters", "params", "pruner_kwargs"}
"""Fields of our launchers and sweepers whose values are free-form dictionaries."""
MOST_JOBS = 100_000
"""Largest number of jobs of a sweep, and of values of one key of a search."""
_POWER = re.compile(r"(?<![\w.'\"^])([+-]?\d[\d_]*(?:\.\d+)?\^[+-]?\d+(?:\.\d+)?)(?![\w.'\"^])")
_SPLIT_KEY = re.compile(r"\+{0,2}data\.(eval_)?sources\.[^.]+\.split")
# The first alternative matches quoted text, and text that Hydra escaped in the jobs of a sweep; the second matches slices.
_QUOTED_OR_SLICE = re.compile(r"""("[^"]*"|'[^']*'|[^\s,()]*\\\[[^,()]*)|[^\s,()"'\[\]]*\[[^\]"']*(?:\][^\s,()"']*)?""")


def normalize(argument: str) -> str:
    """Return a command-line argument in a form that Hydra's grammar accepts.

    Powers such as `2^20` become plain numbers (in lists, dicts and sweeps too), split slices such as `train[:10%]` are
    quoted, and values in free-form dictionaries such as `deepspeed.config={...}` become forced additions (`++`), because
    Hydra neither replaces nor extends a typed dictionary otherwise.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    value = _POWER.sub(_power, value)
    if _SPLIT_KEY.fullmatch(key):
        value = _QUOTED_OR_SLICE.sub(lambda match: match[0] if match[1] else f"'{match[0]}'", value)
    if not key.startswith(("+", "~")) and _free_form() & set(key.split(".")[1:]):
        key = f"++{key}"
    return f"{key}={value}"


def _power(match: re.Match[str]) -> str:
    """Return a power as a plain number; one that is out of range as text, which the check of its field refuses."""
    try:
        return str(parse_human_number(match[1]))
    except ValueError:
        return f"'{match[1]}'"


@cache
def _free_form() -> set[str]:
    """Return the names of all fields whose values are free-form dictionaries."""
    own = {
        item.name for cls in registered().values() for item in fields(cls) if str(item.type).startswith("dict[str, Any")
    }
    return own | FREE_FORM_OF_PLUGINS


def flags(config_name: str, config_dir: str | None) -> list[str]:
    """Return the arguments that select the config and the code on a command line, none for the defaults."""
    name = [] if config_name == "config" else ["--config-name", config_name]
    return [*name, *(["--config-dir", config_dir] if config_dir else []), *code_file.typed_arguments()]


def is_hydra_override(override: str, part: str = "") -> bool:
    """Whether an override is for Hydra itself, or for a part of it such as `sweeper`."""
    return override.lstrip("+~").startswith((f"hydra.{part}", f"hydra/{part}"))


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of each job of a grid sweep, in Hydra's order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # so that jobs come in Hydra's order

    try:
        return [job for batch in BasicSweeper.split_arguments(parse(overrides), None) for job in batch]
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{_interval_problem(overrides) or str(error).splitlines()[0]}: not a valid sweep") from error


def search_samples(overrides: list[str]) -> list[list[str]]:
    """Return overrides that try every bound and every choice of a search once, starting with the first value of every key."""
    parsed = parse(overrides)
    values = {item.get_key_element(): tried_values(item) for item in parsed}
    base = {key: tried[0] for key, tried in values.items()}
    variants = [{**base, key: value} for key, tried in values.items() for value in tried[1:]]
    return [[f"{key}={value}" for key, value in sample.items()] for sample in (base, *variants)]


def tried_values(item: Override) -> list[str]:
    """Return the value of an override as text, or the choices or bounds of a sweep; raises ConfigError for an empty sweep."""
    if not item.is_sweep_override():
        return [item.get_value_element_as_str()]
    if item.is_discrete_sweep():
        found = list(item.sweep_string_iterator())
        if not found:
            raise ConfigError(
                f"{item.key_or_group}: got {str(item.input_line).partition('=')[2]}, which holds no value"
            )
        return found if not item.is_range_sweep() else [found[0], found[-1]]
    interval = item.value()
    assert isinstance(interval, IntervalSweep), item.input_line
    return [str(interval.start), str(interval.end)]


def parse(overrides: list[str]) -> list[Override]:
    """Parse the overrides of a sweep; raises ConfigError for invalid ones."""
    with hydra_with() as loader:
        try:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        except (HydraException, ValueError) as error:
            raise ConfigError(f"{str(error).splitlines()[0]}: not a valid sweep") from error
    jobs = 1
    for item in parsed:
        if item.is_discrete_sweep():
            jobs *= sum(1 for _ in islice(item.sweep_string_iterator(), MOST_JOBS + 1))
        if jobs > MOST_JOBS:
            raise ConfigError(f"{item.key_or_group}: the sweep has more than {MOST_JOBS:,} jobs; try fewer values")
    return parsed


def _interval_problem(overrides: list[str]) -> str:
    found = [
        item.key_or_group for item in parse(overrides) if item.is_sweep_override() and not item.is_discrete_sweep()
    ]
    return (
        f"{found[0]}: got an interval, which has infinitely many values; pass hydra/sweeper=optuna to search it"
        if found
        else ""
    )
