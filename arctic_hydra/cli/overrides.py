"""The grammar of overrides: numbers, split slices, free-form dictionaries and sweeps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import fields
from decimal import Decimal
from functools import cache
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException

from arctic_hydra.cli.composition.search_path import hydra_with
from arctic_hydra.component import escape_interpolations, registered
from arctic_hydra.errors import ConfigError
from arctic_hydra.files import code_file
from arctic_hydra.human_numbers import parse_human_number

FREE_FORM_OF_PLUGINS = {"additional_parameters", "params", "pruner_kwargs"}
"""Fields of our launchers and sweepers whose values are free-form dictionaries."""
MOST_JOBS = 100_000
"""Largest number of jobs of a grid sweep, and of values of one key."""
_POWER = re.compile(r"[+-]?\d[\d_]*(?:\.\d+)?\^[+-]?\d+(?:\.\d+)?")
_DELIMITER = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\\.|[\[\](){},:=])""", re.DOTALL)
"""What separates the elements of a value; quoted text and escaped characters are not split."""
_TEXT_KEYS = ("prompt", "system", "exact_match.pattern")
"""Keys whose value is any text, which the shell alone quotes."""
_SPLIT_KEY = re.compile(r"\+{0,2}data\.(eval_)?sources\.[^.]+\.split")
# The first alternative matches quoted text, and text that Hydra escaped in the jobs of a sweep; the second matches slices.
_QUOTED_OR_SLICE = re.compile(r"""("[^"]*"|'[^']*'|[^\s,()]*\\\[[^,()]*)|[^\s,()"'\[\]]*\[[^\]"']*(?:\][^\s,()"']*)?""")


def normalize(argument: str) -> str:
    """Return a command-line argument in a form that Hydra's grammar accepts.

    Powers such as `2^20` become plain numbers where they are a whole value, or a whole element of a list, dict or sweep;
    split slices such as `train[:10%]` are quoted, and so are prompts and patterns, which may contain anything, and names of
    experiments that are numbers; and values in free-form dictionaries such as `deepspeed.config={...}` become forced additions
    (`++`), because Hydra neither replaces nor extends a typed dictionary otherwise.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    if key in _TEXT_KEYS and value != "null":
        return f"{key}={QuotedString(escape_interpolations(value), Quote.single).with_quotes()}"
    if key == "experiment":
        return f"{key}={','.join(map(_quoted_number, value.split(',')))}"
    value = _with_plain_powers(value)
    if _SPLIT_KEY.fullmatch(key):
        value = _QUOTED_OR_SLICE.sub(lambda match: match[0] if match[1] else f"'{match[0]}'", value)
    if not key.startswith(("+", "~")) and _free_form() & set(key.split(".")[1:]):
        key = f"++{key}"
    return f"{key}={value}"


def _quoted_number(name: str) -> str:
    """Return the name of an option, in quotes if Hydra would read a number."""
    try:
        float(name)
    except ValueError:
        return name
    return f"'{name}'"


def _with_plain_powers(value: str) -> str:
    """Return a value with its powers as plain numbers, except those that are only part of an element, such as of a path."""
    pieces = _DELIMITER.split(value)  # element, delimiter, element, ...
    opened, begins, named = [""], True, False
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            ends = pieces[index + 1] in (",", "]", ")", "}") if index + 1 < len(pieces) else True
            if begins and ends and _POWER.fullmatch(piece.strip()):
                pieces[index] = _power(piece.strip())
            continue
        if piece in ("[", "(", "{"):
            opened.append(piece)
        elif piece in ("]", ")", "}") and len(opened) > 1:
            opened.pop()
        # `{key:value}` and `range(start=value)`; a second colon belongs to the value
        after_name = opened[-1] + piece in ("{:", "(=") and not named
        begins = piece in ("[", "(", "{", ",") or after_name
        named = (named or after_name) and piece not in ("[", "(", "{", ",")
    return "".join(pieces)


def _power(text: str) -> str:
    """Return a power as a plain number; one that is out of range as quoted text, which the check of its field refuses."""
    try:
        return str(parse_human_number(text))
    except ValueError:
        return f"'{text}'"


@cache
def _free_form() -> set[str]:
    """Return the names of all fields whose values are free-form dictionaries."""
    own = {
        item.name for cls in registered().values() for item in fields(cls) if str(item.type).startswith("dict[str, Any")
    }
    return own | FREE_FORM_OF_PLUGINS


def forget_fields() -> None:
    """Look the free-form fields up again, after components were registered or unregistered."""
    _free_form.cache_clear()


def flags(config_name: str, config_dir: str | None) -> list[str]:
    """Return the arguments that select the config and the code on a command line, none for the defaults."""
    name = [] if config_name == "config" else ["--config-name", config_name]
    return [*name, *(["--config-dir", config_dir] if config_dir else []), *code_file.typed_arguments()]


def is_hydra_override(override: str, part: str = "") -> bool:
    """Whether an override is for Hydra itself, or for a part of it such as `sweeper`."""
    return override.lstrip("+~").startswith((f"hydra.{part}", f"hydra/{part}"))


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of each job of a grid sweep; raises ConfigError above `MOST_JOBS`.

    Jobs are in the order of Hydra's own sweeper: the last key varies fastest, and of two overrides of a key the last counts.
    """
    parsed = parse(overrides)
    check_size(parsed)
    if problem := _interval_problem(parsed):
        raise ConfigError(f"{problem}: not a valid sweep")
    try:
        values = {item.get_key_element(): _values(item) for item in parsed}
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{_first_line(error)}: not a valid sweep") from error
    return [[f"{key}={value}" for key, value in zip(values, job, strict=True)] for job in product(*values.values())]


def _values(item: Override) -> list[str]:
    return list(item.sweep_string_iterator()) if item.is_sweep_override() else [item.get_value_element_as_str()]


def check_size(parsed: Iterable[Override]) -> None:
    """Raise ConfigError, before anything is listed, if the values of a grid sweep make more than `MOST_JOBS` jobs."""
    jobs = 1
    for item in parsed:
        if item.is_discrete_sweep():
            jobs *= max(1, _value_count(item))
        if jobs > MOST_JOBS:
            raise _too_many(item)


def search_samples(overrides: list[str]) -> list[list[str]]:
    """Return overrides that try every bound and every choice of a search once, starting with the first value of every key."""
    parsed = parse(overrides)
    values = {item.get_key_element(): tried_values(item) for item in parsed}
    base = {key: tried[0] for key, tried in values.items()}
    variants = [{**base, key: value} for key, tried in values.items() for value in tried[1:]]
    return [[f"{key}={value}" for key, value in sample.items()] for sample in (base, *variants)]


def of_first_job(overrides: list[str]) -> list[str]:
    """Return the overrides of the first job of a sweep, those of Hydra's own node among them."""
    own = [item for item in overrides if not is_hydra_override(item)]
    return [*filter(is_hydra_override, overrides), *search_samples(own)[0]]


def tried_values(item: Override) -> list[str]:
    """Return the value of an override as text, or the choices or bounds of a sweep.

    Raises ConfigError for a sweep without values, or with more than `MOST_JOBS`.
    """
    if not item.is_sweep_override():
        return [item.get_value_element_as_str()]
    if item.is_discrete_sweep():
        if _value_count(item) > MOST_JOBS:
            raise _too_many(item)
        found = list(item.sweep_string_iterator())
        if not found:
            raise ConfigError(f"{item.key_or_group}: got {_given(item)}, which holds no value")
        return found if not item.is_range_sweep() else [found[0], found[-1]]
    interval = item.value()
    assert isinstance(interval, IntervalSweep), item.input_line
    return [str(interval.start), str(interval.end)]


def _too_many(item: Override) -> ConfigError:
    return ConfigError(f"{item.key_or_group}: the sweep has more than {MOST_JOBS:,} jobs; try fewer values")


def _value_count(item: Override) -> int:
    """Return the number of values of a discrete sweep, for a range without listing it: then it may be one too high."""
    sweep = item.value()
    if isinstance(sweep, RangeSweep):
        start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
        if not (start.is_finite() and stop.is_finite() and step.is_finite() and step):
            raise ConfigError(
                f"{item.key_or_group}: got {_given(item)}, expected range(start,stop,step) with finite numbers and a step other than 0"
            )
        return max(0, math.ceil(min((stop - start) / step, Decimal(MOST_JOBS + 1))))
    if isinstance(sweep, ChoiceSweep):
        return len(sweep.list)
    return sum(1 for _ in item.sweep_string_iterator())  # glob(...): options of a group


def _given(item: Override) -> str:
    return str(item.input_line).partition("=")[2][:80]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def parse(overrides: list[str]) -> list[Override]:
    """Parse the overrides of a sweep; raises ConfigError for invalid ones."""
    with hydra_with() as loader:
        try:
            return OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        except (HydraException, ValueError, RecursionError) as error:
            raise ConfigError(f"{_first_line(error)}: not a valid sweep") from error


def _interval_problem(parsed: Iterable[Override]) -> str:
    found = [item.key_or_group for item in parsed if item.is_interval_sweep()]
    return (
        f"{found[0]}: got an interval, which has infinitely many values; pass hydra/sweeper=optuna to search it"
        if found
        else ""
    )
