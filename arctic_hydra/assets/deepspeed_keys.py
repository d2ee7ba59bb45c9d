"""Checks `deepspeed.config` against a table of DeepSpeed's own keys and types, without importing DeepSpeed.

`deepspeed_keys.json` is made from DeepSpeed's models and constants (`python -m tests.assets.deepspeed_table`), and a test
compares it with the installed version.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from arctic_hydra.assets import ASSETS

TABLE = ASSETS / "deepspeed_keys.json"
"""One entry per key: `types`, bounds, `one_of`, the `items` of a list and the `keys` of a section, or why it was `removed`."""

Entry = dict[str, Any]

_WORDS = ("0", "1", "f", "false", "n", "no", "off", "on", "t", "true", "y", "yes")
"""Texts that pydantic reads as booleans."""
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "any": ("", lambda value: True),
    "boolean": ("true or false", lambda value: _is_flag(value) or str(value).lower() in _WORDS),
    "flag": ("true or false", lambda value: _is_flag(value)),
    "integer": ("a whole number", lambda value: _is_number(value) and value == int(value)),
    "number": ("a number", lambda value: _is_number(value)),
    "text": ("a text", lambda value: isinstance(value, str)),
    "list": ("a list", lambda value: isinstance(value, list | tuple)),
    "dict": ("a dictionary of settings", lambda value: isinstance(value, Mapping)),
    "null": ("null", lambda value: value is None),
}
"""How an error describes a type, and whether a value is of it."""
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("{} or more", lambda value, bound: value >= bound),
    "above": ("more than {}", lambda value, bound: value > bound),
    "maximum": ("{} or less", lambda value, bound: value <= bound),
    "below": ("less than {}", lambda value, bound: value < bound),
}
_TORCH_MODULE = re.compile(r"torch\.nn\.[A-Za-z]\w*", re.ASCII)


def problems(config: Mapping[Any, Any], where: str = "deepspeed.config") -> Iterator[str]:
    """Yield each key that DeepSpeed does not have and each value that it refuses, as full key, value and what it expects.

    With another DeepSpeed than the one of the table, only the names of the top-level keys are checked, and that sections
    are dictionaries; DeepSpeed itself checks the rest when the run starts. Values that would make it import code or overwrite
    a file are refused in either case.
    """
    keys, is_installed = _table()
    if not is_installed:
        keys = {name: _outline(entry) for name, entry in keys.items()}
    yield from _section_problems(config, keys, where, auto=False)
    yield from _effect_problems(config, where)


def names() -> frozenset[str]:
    """Return the keys of DeepSpeed's configuration at the top."""
    return frozenset(_table()[0])


def _effect_problems(config: Mapping[Any, Any], where: str) -> Iterator[str]:
    """Yield each value with which DeepSpeed would import a module or overwrite a file; others are only looked up by name."""
    key = f"{where}.torch_autocast.lower_precision_safe_modules"
    modules = _setting(config, "torch_autocast", "lower_precision_safe_modules")
    for index, name in enumerate(modules if isinstance(modules, list | tuple) else filter(None, [modules])):
        if isinstance(name, str) and not _TORCH_MODULE.fullmatch(name):
            yield f"{key}[{index}]: got {name!r}, but DeepSpeed imports it; expected torch.nn.<class>, such as torch.nn.Linear"
    output = _setting(config, "flops_profiler", "output_file")
    if isinstance(output, str):
        yield (
            f"{where}.flops_profiler.output_file: got {output!r}, but DeepSpeed overwrites this file; remove it: the profile is "
            "then printed to logs/rank0.log"
        )
    if _setting(config, "autotuning", "enabled"):
        yield (
            f"{where}.autotuning.enabled: got true, but DeepSpeed then writes files and ends the process; remove it, and "
            "compare settings with a sweep"
        )


def _setting(config: Mapping[Any, Any], section: str, name: str) -> Any:
    settings = config.get(section)
    return settings.get(name) if isinstance(settings, Mapping) else None


@cache
def _table() -> tuple[dict[str, Entry], bool]:
    """Return the entries of the top-level keys, and whether they are those of the installed DeepSpeed."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    try:
        installed = version("deepspeed")
    except PackageNotFoundError:
        installed = table["deepspeed"]
    return table["keys"], installed.partition("+")[0] == table["deepspeed"]


def _outline(entry: Entry) -> Entry:
    return entry if "removed" in entry else {"types": ["dict"] if entry["types"] == ["dict"] else ["any"]}


def _section_problems(section: Mapping[Any, Any], keys: dict[str, Entry], where: str, *, auto: bool) -> Iterator[str]:
    for name, value in section.items():
        key = f"{where}.{name}"
        entry = keys.get(str(name))
        if entry is None:
            near = difflib.get_close_matches(str(name), keys, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"{key}: DeepSpeed has no such key{hint}"
        elif "removed" in entry:
            yield f"{key}: {entry['removed']}; remove it"
        elif not (auto and value == "auto"):  # DeepSpeed's models replace `auto` by the default
            yield from _value_problems(value, entry, key)


def _value_problems(value: Any, entry: Entry, key: str) -> Iterator[str]:
    if not any(_TYPES[kind][1](value) for kind in entry["types"]):
        expected = " or ".join(dict.fromkeys(_TYPES[kind][0] for kind in entry["types"]))
        yield f"{key}: got {value!r}, expected {_with_bounds(expected, entry)}"
    elif "one_of" in entry and value is not None and value not in entry["one_of"]:
        choices = ", ".join("null" if choice is None else str(choice) for choice in entry["one_of"])
        yield f"{key}: got {value!r}, expected one of {choices}"
    elif _is_number(value) and not all(_BOUNDS[name][1](value, entry[name]) for name in _BOUNDS.keys() & entry):
        yield f"{key}: got {value!r}, expected {_with_bounds('', entry)}"
    elif isinstance(value, Mapping) and "keys" in entry:
        yield from _section_problems(value, entry["keys"], key, auto=entry.get("auto", False))
    elif isinstance(value, list | tuple) and "items" in entry:
        for index, item in enumerate(value):
            yield from _value_problems(item, entry["items"], f"{key}[{index}]")


def _with_bounds(expected: str, entry: Entry) -> str:
    bounds = " and ".join(text.format(entry[name]) for name, (text, _) in _BOUNDS.items() if name in entry)
    return ", ".join(filter(None, (expected, bounds)))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (_is_number(value) and value in (0, 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
