"""Builds components from plain, resolved configs.

This is the only place where a config becomes objects. Hydra's `instantiate` is not used: it would look up any dotted path,
and OmegaConf would parse resolved text once more, so that an escaped `\\${...}` would become an interpolation.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import MISSING, fields
from enum import Enum
from functools import cached_property
from types import FunctionType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from arctic_hydra.component import (
    BY_TARGET,
    MISSING_VALUE,
    Component,
    convert_fields,
    default_of,
    flatten,
    hints_of,
    is_settings,
    registered,
)
from arctic_hydra.errors import ConfigError, FieldError
from arctic_hydra.files import code_file
from arctic_hydra.files.extensions import BROKEN_EXTENSIONS, DISPUTED_OPTIONS, ENTRY_POINT_GROUP

_HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
_PROPERTIES_AS_FIELDS = {"trainer", "weight"}
"""Properties that a field may take the place of: `trainer` in the root of the config, `weight` in a source."""
_EXTENDED = {"__post_init__": "", "setup": "tools", "bind": "state"}
"""Methods that a class may extend but not replace, with their arguments."""
_NO_EFFECT = "a key that Hydra interprets, which has no effect here; remove it"


def create(tree: Mapping[str, Any], key: str = "", family: type[Component] = Component) -> Any:
    """Build the component that a plain, resolved tree describes, with the components in it.

    `key` is the config key of the tree, for messages; `family` is a class that the component must have.

    `_target_` is compared with the names of the registered classes; nothing is looked up by its path or imported. Text is
    never an interpolation. Raises ConfigError with the full config key of every problem found.
    """
    problems: list[str] = []
    made = _make(tree, key, family, problems)
    if problems:
        raise ConfigError(problems)
    return made


def refused_target(key: str, name: Any) -> str:
    """Return the problem of a class that a config names at `key` and that is not registered."""
    if code_file.owns(str(name)):
        return (
            f"{key}: got {name!r}, a class of a file that only the command line can name; pass code=<path of the file>, as the "
            "command that began the run did"
        )
    if broken := BROKEN_EXTENSIONS.get(str(name).partition(".")[0]):
        return f"{key}: got {name!r}, but {broken}"
    return (
        f"{key}: got {name!r}, which is not allowed to be imported from a config (nothing was imported); expected a registered "
        f"component of arctic_hydra or of an installed extension; choose one with {_remedy(key)}, or declare your own package "
        f"with the entry point group {ENTRY_POINT_GROUP!r} (CONTRIBUTING.md)"
    )


def _remedy(key: str) -> str:
    group = key.split(".")[0]
    options = ", ".join(sorted(name for _, name in registered(group)))
    return f"{group}=<one of {options}>" if options else "its config group"


def _make(node: Any, key: str, family: type, problems: list[str]) -> Any:
    """Return the component of one node; None after adding what is wrong with it to `problems`."""
    target = node.get("_target_", MISSING_VALUE) if isinstance(node, Mapping) else MISSING_VALUE
    if target == MISSING_VALUE:
        what = f"{key}: got {node!r}, expected an option; pass {key.replace('.', '/')}=<name of an option>"
        problems.append(what if key else f"config: got {node!r}, expected a composed config")
        return None
    if not isinstance(target, str) or target not in BY_TARGET or target.partition(".")[0] in BROKEN_EXTENSIONS:
        problems.append(refused_target(f"{key}._target_" if key else "_target_", target))
        return None
    cls: Any = BY_TARGET[target]
    prefix = f"{key}." if key else ""
    if not issubclass(cls, family):
        problems.append(
            f"{prefix}_target_: got {target!r}, expected a subclass of {family.__name__}; choose the option in its config group instead of "
            "changing _target_"
        )
        return None
    if dispute := DISPUTED_OPTIONS.get((cls.option_group, cls.option_name)):
        problems.append(f"{prefix}_target_: got {target!r}, an option that two classes are to have, and {dispute}")
        return None
    if flaw := _flaw(cls):
        problems.append(f"{prefix}_target_: got {target!r}, {flaw}")
        return None
    return _build(cls, node, key, problems)


def _flaw(cls: Any) -> str:
    """Return what keeps a registered class from working as a component; empty for one that does."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        return f"which does not define {', '.join(missing)}; add what its base class requires"
    names = {item.name for item in fields(cls)}
    for name in names - _PROPERTIES_AS_FIELDS:
        for base in cls.__mro__:
            if isinstance(vars(base).get(name), FunctionType | property | cached_property):
                return f"whose field {name} hides {base.__name__}.{name}, which is not a field; give the field another name"
    taken = inspect.signature(cls).parameters
    if {item.name for item in fields(cls) if item.init} - taken.keys():
        return "whose `__init__` does not take all of its fields; write `__post_init__` instead, with `super().__post_init__()` first"
    return next(_wrong_overrides(cls), "")


def _wrong_overrides(cls: Any) -> Iterator[str]:
    """Yield each method of an extension that is incompatible with the one that it overrides; tests check ours."""
    for index, owner in enumerate(cls.__mro__):
        if owner.__module__.partition(".")[0] in ("arctic_hydra", "abc", "builtins"):
            continue
        for name, method in vars(owner).items():
            base = next((each for each in cls.__mro__[index + 1 :] if name in vars(each)), None)
            original = vars(base)[name] if base is not None else None
            where = f"whose {name} overrides {base.__name__}.{name}" if base is not None else ""
            if isinstance(method, FunctionType) and isinstance(original, property):
                yield f"{where}, which is a property; write `@property` above it"
            elif isinstance(method, property) and isinstance(original, FunctionType):
                yield f"{where}, which is a method; remove `@property` above it"
            elif not isinstance(method, FunctionType) or not isinstance(original, FunctionType):
                continue
            elif name in _EXTENDED and name not in inspect.unwrap(method).__code__.co_names:
                yield f"{where} without calling it; call `super().{name}({_EXTENDED[name]})` first"
            elif not name.startswith("_") and not _can_stand_for(method, original):
                given = inspect.signature(original)
                yield f"{where}, but cannot be called like it; take the same parameters: `{name}({', '.join(given.parameters)})`"


def _can_stand_for(method: FunctionType, original: FunctionType) -> bool:
    """Whether a method can be called with what every call of the original passes."""
    needed = [each for each in inspect.signature(original).parameters.values() if each.default is each.empty]
    keywords = {each.name: None for each in needed if each.kind is each.KEYWORD_ONLY}
    positional = [None for each in needed if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    try:
        inspect.signature(method).bind(*positional, **keywords)
    except TypeError:
        return False
    return True


def _build(cls: Any, node: Mapping[str, Any], key: str, problems: list[str]) -> Any:
    """Return the object of a dataclass from its plain fields; None after adding what is wrong with them to `problems`."""
    before, values = len(problems), {}
    known, hints = {item.name: item for item in fields(cls)}, hints_of(cls)
    prefix = f"{key}." if key else ""
    for name, value in node.items():
        full_key = f"{prefix}{name}"
        if name in _HYDRA_KEYS and (name != "_target_" or name not in known):
            problems.append(refused_target(full_key, value) if name == "_target_" else f"{full_key}: {_NO_EFFECT}")
        elif full_key == "code":
            problems.append(f"code: got {value!r}, but {code_file.REFUSAL}")
        elif name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            other = f"did you mean {prefix}{near[0]}?" if near else "remove it"
            problems.append(f"{full_key}: there is no such key in {cls.__name__}; {other}")
        elif name != "_target_":
            values[name] = _value(value, hints[name], full_key, problems)
    for name, item in known.items():
        if name not in node and default_of(item) in (MISSING, MISSING_VALUE):
            problems.append(unset(f"{prefix}{name}"))
    if len(problems) == before:
        try:
            if is_settings(cls) and (wrong := convert_fields(cls, values)):  # a component converts its own
                raise FieldError(wrong)
            return cls(**values)
        except FieldError as error:
            problems += [f"{prefix}{name}: {text}" for name, text in error.fields]
        except ConfigError as error:
            problems += error.problems
        except ValueError as error:  # messages of `validate` begin with the name of the field
            problems.append(f"{prefix}{error}")
    return None


def _value(value: Any, hint: Any, key: str, problems: list[str]) -> Any:
    """Return the value of one field, with the components in it built."""
    if isinstance(value, str) and value == MISSING_VALUE:
        problems.append(unset(key))
    elif isinstance(hint, type) and issubclass(hint, Component):
        return _make(value, key, hint, problems)
    elif (settings := _settings_of(hint)) and isinstance(value, Mapping):
        return _build(settings, value, key, problems)
    elif family := _family_of_values(hint):
        if isinstance(value, Mapping):
            return {name: _make(item, f"{key}.{name}", family, problems) for name, item in value.items()}
        problems.append(f"{key}: got {value!r}, expected named entries")
    elif not _fits(value, hint):
        problems.append(f"{key}: got {value!r}, expected {_describe(hint)}")
    else:
        problems += _hydra_keys(value, key)
    return deepcopy(value)


def _hydra_keys(value: Any, key: str) -> Iterator[str]:
    """Yield a problem for every key of a free-form value that Hydra would interpret."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name in _HYDRA_KEYS:
                yield refused_target(f"{key}.{name}", item) if name == "_target_" else f"{key}.{name}: {_NO_EFFECT}"
            else:
                yield from _hydra_keys(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _hydra_keys(item, f"{key}[{index}]")


def trusted_keys(job: Mapping[str, Any]) -> list[str]:
    """Return the keys of a plain config that let code of a model's repository run."""
    return [key for key, value in flatten(job).items() if key.endswith(".trust_remote_code") and value]


def unset(key: str) -> str:
    """Return the problem of a required key without a value."""
    return f"{key}: required, but not set; pass {key}=<value>"


def _settings_of(hint: Any) -> type | None:
    """Return the dataclass of a field that holds further fields, also of an optional one; None for other types."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((kind for kind in kinds if is_settings(kind)), None)


def _family_of_values(hint: Any) -> type[Component] | None:
    """Return the component class of the values of a dict, or None for other types."""
    arguments = get_args(hint) if get_origin(hint) is dict else ()
    value = arguments[1] if arguments else None
    return value if isinstance(value, type) and issubclass(value, Component) else None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value has the declared type of a field; numbers of enums are their names."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is list:
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits(item, arguments[1]) for item in value.values())
    if hint is Any or (isinstance(hint, type) and issubclass(hint, Enum)):  # a component converts its enums
        return True
    if hint is NoneType:
        return value is None
    if is_settings(hint):
        return False  # a mapping is built before
    if isinstance(value, bool) and hint is not bool:
        return False
    return isinstance(value, int | float if hint is float else hint)


def _describe(hint: Any) -> str:
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}.get(
        hint, " or ".join(map(_describe, get_args(hint))) if get_origin(hint) in (Union, UnionType) else str(hint)
    )
