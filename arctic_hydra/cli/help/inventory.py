"""What a command line can choose and set: config groups, their options, and the keys of each option."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from functools import cache, cached_property
from itertools import pairwise
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from arctic_hydra.cli.composition.config_sources import LIST_GROUPS
from arctic_hydra.cli.composition.search_path import hydra_with
from arctic_hydra.cli.help.sections import RUN, section_of, unit_of
from arctic_hydra.component import MISSING_VALUE, Component, default_of, hints_of, is_settings, registered
from arctic_hydra.config import Run
from arctic_hydra.errors import ConfigError, printable
from arctic_hydra.files import code_file
from arctic_hydra.hub import holds_path
from arctic_hydra.human_numbers import LARGEST, NumberRule
from arctic_hydra.redaction import redact

HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
"""The groups of Hydra whose options have an effect here."""
_OF_HYDRA = {
    "hydra/launcher/basic": "Runs the jobs of a sweep one after another.",
    "hydra/sweeper/basic": "A grid: one job for every combination of the values.",
}
NAMED = "<name>"
"""Placeholder in a key for the name of a source, which the user chooses."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TYPES = {int: "integer", float: "number", str: "text", dict: "mapping", list: "list"}


@dataclass(frozen=True)
class Key:
    """A key of a config, as an option of a group declares it."""

    name: str
    """The full key, as on the command line."""
    field: str
    """The key within its option."""
    owner: type
    """The class that declares it."""
    kind: str
    """Type, allowed values, range and unit, in words."""
    values: tuple[str, ...]
    """The allowed values, if they are few."""
    default: str
    """The default as on the command line; empty if the key is required."""
    section: str
    """Heading under which a help page shows it."""

    @property
    def doc(self) -> str:
        """The docstring below the field."""
        return field_docs(self.owner).get(self.field.rpartition(".")[2], "")


@dataclass(frozen=True)
class Option:
    """An option of a group."""

    group: str
    name: str
    about: str
    """What it is, in one line."""
    paragraphs: tuple[str, ...]
    """All that its class or the comment of its file says about it."""
    keys: tuple[Key, ...]
    chooses: Mapping[str, str]
    """Options of other groups that it chooses too, by group."""
    sets: Mapping[str, Any]
    """Values that its file sets, as a tree."""
    example: str
    """A command that uses it; empty if its file shows none."""


_DEEPEST, _MOST_FOLDERS = 8, 2000
"""Folders within folders, and folders, that may hold options; a directory of `--config-dir` may also hold the rest of a project."""


class Inventory:
    """Groups and options that Hydra's loader finds: ours, those of installed extensions and of `--config-dir`."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._files: dict[str, tuple[str, dict[str, Any]]] = {}
        self._options: dict[tuple[str, str], Option] = {}

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The names of the options of each group, the default first."""
        try:
            found = {
                group: self._loader.repository.get_group_options(group, ObjectType.CONFIG)
                for group in self._group_names()
            }
        except OSError as error:
            raise ConfigError(
                f"--config-dir: its folders cannot be listed ({error}); expected a directory of configs that you can read"
            ) from error
        found |= {group: [] for group in LIST_GROUPS if group not in found}
        return {group: _default_first(options, self._defaults.get(group)) for group, options in sorted(found.items())}

    def _group_names(self) -> Iterator[str]:
        """Yield the groups with options, those of a folder before those below it."""
        folders, looked_at = [""], 0
        for _ in range(_DEEPEST):
            below = []
            for parent in folders:
                for child in self._loader.repository.get_group_options(parent, ObjectType.GROUP):
                    group = f"{parent}/{child}".lstrip("/")
                    looked_at += 1
                    if looked_at > _MOST_FOLDERS:  # links that lead upwards make endless folders
                        return
                    if child.startswith(".") or group == "schema" or (parent == "hydra" and group not in HYDRA_GROUPS):
                        continue
                    if self._loader.repository.get_group_options(group, ObjectType.CONFIG) and group != "hydra":
                        yield group
                    below.append(group)
            folders = below

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        _, tree = self._read("config")
        return {
            group: chosen for item in _defaults_list(tree) if isinstance(item, dict) for group, chosen in item.items()
        }

    def defaults(self, group: str) -> list[str]:
        """Return the options of a group that a command line without a choice has."""
        chosen = self._defaults.get(group, "basic" if group in HYDRA_GROUPS else None)
        return chosen if isinstance(chosen, list) else [chosen] if chosen else []

    def option(self, group: str, name: str) -> Option:
        """Return the description, the values and the keys of an option."""
        if (group, name) not in self._options:
            self._options[group, name] = self._option(group, name)
        return self._options[group, name]

    def _option(self, group: str, name: str) -> Option:
        text, _ = self._read(f"{group}/{name}")
        schema, tree = self._resolve(f"{group}/{name}")
        comments = [line.lstrip("# ") for line in _head_comment(text) if not line.startswith("# @package")]
        examples = [line for line in comments if line.startswith("python -m ")]
        said = "\n".join(line for line in comments if line not in examples)
        cls = schema_class(schema) if schema else None
        is_own = schema in (f"schema/{group}/{name}", f"{group}/{name}")  # otherwise several options share the class
        documented = (inspect.getdoc(cls) or "") if cls and (is_own or not said) else said
        paragraphs = [
            " ".join(part.split()) for part in _OF_HYDRA.get(f"{group}/{name}", documented).strip().split("\n\n")
        ]
        return Option(
            group,
            name,
            first_sentence(paragraphs[0]),
            tuple(paragraphs),
            tuple(keys_of(cls, prefix(group, name), group, tree)) if cls else (),
            _chosen(tree),
            {key: value for key, value in tree.items() if key != "defaults"},
            examples[0] if examples else "",
        )

    def _read(self, path: str) -> tuple[str, dict[str, Any]]:
        """Return the text of an option's file, and what it holds."""
        if path not in self._files:
            text = self._loader.repository.text_of(path)
            try:
                tree = yaml.load(text, Loader=_LOADER)
            except yaml.YAMLError:  # reported when the option is used
                text, tree = "", {}
            self._files[path] = text, redact(tree) if isinstance(tree, dict) else {}
        return self._files[path]

    def _resolve(self, path: str, seen: tuple[str, ...] = ()) -> tuple[str, dict[str, Any]]:
        """Return the schema of an option and the values that it sets, with those of the option that it extends."""
        _, tree = self._read(path)
        here = [
            item.removesuffix("@_here_").lstrip("/")
            for item in _defaults_list(tree)
            if isinstance(item, str) and item.endswith("@_here_")
        ]
        schema, base = "", dict[str, Any]()
        if here and here[0].startswith("schema/"):
            schema = here[0]
        elif here and here[0] not in seen:
            schema, base = self._resolve(here[0], (*seen, path))
        elif not tree:  # an option without a file, of `code=` or of a plugin
            schema = f"schema/{path}" if tuple(path.rsplit("/", 1)) in registered() else path
        return schema, {**base, **tree}

    @cached_property
    def run_keys(self) -> list[Key]:
        """The keys of the run itself, which are in no group."""
        return [key for key in keys_of(Run, "", RUN, {}) if not key.name.startswith("_")]

    def every_key(self) -> Iterator[tuple[Key, Option | None]]:
        """Yield all keys, with the option that has them; None for those of the run itself."""
        yield from ((key, None) for key in self.run_keys)
        for group, names in self.groups.items():
            for name in names:
                option = self.option(group, name)
                yield from ((key, option) for key in option.keys)


def groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """Return all config groups with the names of their options, the default first; some groups have none."""
    with hydra_with(config_dir) as loader:
        return Inventory(loader).groups


def prefix(group: str, option: str) -> str:
    """Return the key below which the keys of an option are."""
    if group == "source":
        return f"data.sources.{NAMED}"
    place = group.replace("/", ".")
    return (
        f"{place}.{option.removeprefix(code_file.PREFIX)}"
        if group in (*LIST_GROUPS, "data/sources", "data/eval_sources")
        else place
    )


@cache
def schema_class(path: str) -> Any:
    """Return the class of a schema by its path in Hydra's config store; None if this package has none."""
    group, _, name = path.rpartition("/")
    cls = registered().get((group.removeprefix("schema/"), name))
    store = ConfigStore.instance()
    if cls is None and f"{name}.yaml" in (store.list(group) if store.get_type(group) is ObjectType.GROUP else []):
        node = store.load(f"{path}.yaml")
        cls = OmegaConf.get_type(node.node) if node.provider == "arctic_hydra" else None
    return Run if path == "schema/run" else cls


def keys_of(owner: Any, place: str, group: str, values: Mapping[str, Any], within: str = "") -> Iterator[Key]:
    """Yield the keys of a class, or of a default value that holds further fields; those of a component's slots are skipped.

    `values` are those that the file of an option sets; the other defaults are those of the class.
    """
    cls, section = (owner if isinstance(owner, type) else type(owner)), ""
    for item in fields(cls):
        hint = hints_of(cls)[item.name]
        if item.name == "_target_" or _holds_components(hint):
            continue
        default = default_of(item) if isinstance(owner, type) else getattr(owner, item.name)
        default = values.get(item.name, default)
        section = section_of(group, item.name, section)
        path = f"{within}.{item.name}".lstrip(".")
        if is_settings(type(default)):
            yield from keys_of(default, place, group, {}, path)
            continue
        kind, allowed = _kind(item, hint, default)
        required = default is MISSING or default == MISSING_VALUE
        yield Key(
            name=f"{place}.{path}".lstrip("."),
            field=path,
            owner=cls,
            kind=kind,
            values=allowed,
            default="" if required else as_text(default),
            section="Required" if required else section,
        )


def _holds_components(hint: Any) -> bool:
    inner = get_args(hint)[-1] if get_origin(hint) is dict else hint
    return isinstance(inner, type) and issubclass(inner, Component)


def _kind(item: Field[Any], hint: Any, default: Any) -> tuple[str, tuple[str, ...]]:
    """Return the type of a field in words, and its allowed values if they are few."""
    parts = (
        [part for part in get_args(hint) if part is not type(None)]
        if get_origin(hint) in (Union, UnionType)
        else [hint]
    )
    plain = get_origin(parts[0]) or parts[0]
    or_null = ", or null" if type(None) in get_args(hint) and default is not None else ""
    rule, choices = item.metadata.get("number"), item.metadata.get("choices")
    if isinstance(plain, type) and issubclass(plain, Enum):
        choices = list(plain.__members__)
    if plain is bool:
        choices = ["true", "false"]
    if choices:
        return " | ".join(map(str, choices)) + or_null, tuple(map(str, choices))
    if isinstance(rule, NumberRule):
        return _number(item.name, rule.integer, rule.minimum, rule.maximum) + or_null, ()
    if plain in (int, float):
        return _number(item.name, plain is int, *item.metadata.get("range", (None, LARGEST))) + or_null, ()
    if holds_path(item.name):
        return ("path" if plain is str else "path or list of paths") + or_null, ()
    if plain is list and get_args(parts[0]) and (one := _TYPES.get(get_args(parts[0])[0])):
        return f"list of {one}{'' if one == 'text' else 's'}", ()
    return _TYPES.get(plain, "any value") + or_null, ()


def _number(name: str, is_integer: bool, minimum: float | None, maximum: float | None) -> str:
    least = None if minimum is None else _bound(minimum)
    most = None if maximum in (None, LARGEST) else _bound(maximum)
    span = f" {least} to {most}" if least and most else f" >= {least}" if least else f" <= {most}" if most else ""
    unit = unit_of(name)
    return f"{'integer' if is_integer else 'number'}{span}{f', in {unit}' if unit else ''}"


def _bound(number: float) -> str:
    """Return a bound of a range, short enough for a row of a page."""
    if number >= 10**6:
        exact = 2 ** round(number).bit_length()
        return (
            f"2^{exact.bit_length() - 1}-1"
            if number == exact - 1
            else f"{number:.2g}".replace("e+0", "e").replace("e+", "e")
        )
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def as_text(value: Any) -> str:
    """Return a value as it is written on a command line."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(as_text, value)) + "]"
    return printable(str(value), keep="") if value != "" else "''"


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, on one line."""
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`(])", " ".join(text.split()), maxsplit=1)[0]


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a class and its bases, by field name."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not owner.__module__.startswith("builtins") and "__annotations__" in owner.__dict__:
            docs |= _docs_in_source(owner)
    return docs


def _docs_in_source(cls: type) -> dict[str, str]:
    body = _classes_in(cls.__module__).get(cls.__name__, [])
    docs = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return docs


@cache
def _classes_in(module: str) -> dict[str, list[ast.stmt]]:
    """Return the statements of each class of a module; its source is parsed once, as `inspect` would for every class."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):
        return {}
    return {node.name: node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _head_comment(text: str) -> list[str]:
    """Return the comment lines at the top of a file."""
    lines = text.splitlines()
    return lines[: next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))]


def _defaults_list(tree: Mapping[str, Any]) -> list[Any]:
    found = tree.get("defaults")
    return found if isinstance(found, list) else []


def _chosen(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of other groups that a defaults list overrides, by group."""
    found = {}
    for item in _defaults_list(tree):
        for key, option in item.items() if isinstance(item, dict) else ():
            if str(key).startswith("override "):
                found[key.removeprefix("override ").partition("@")[0].strip("/ ")] = as_text(option)
    return found


def _default_first(options: list[str], chosen: Any) -> list[str]:
    first = [name for name in (chosen if isinstance(chosen, list) else [chosen]) if name in options]
    return [*first, *(name for name in sorted(options) if name not in first)]
