"""Where config files are read from: directories and declared packages only, through a cache.

All jobs of a sweep compose from the files as they were first read.
"""

from __future__ import annotations

import math
from copy import copy, deepcopy
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository  # the one place where Hydra reads config files
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader  # the rules by which OmegaConf reads scalars
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from arctic_hydra.errors import ConfigError
from arctic_hydra.files.extensions import extensions
from arctic_hydra.human_numbers import shorten

LIST_GROUPS = ("checkpoint", "tracking", "callback", "converter")
"""Groups of which a run takes several options."""
NAMED_SETS = ("data.sources", "data.eval_sources")
MOST_VALUES = 50_000
"""Largest number of values of a config file, with those of its aliases repeated; 100 characters of text count as one more."""
MOST_LEVELS = 100
"""How deeply the values of a config file may be nested."""
MOST_INCLUSIONS = 2_000
"""Largest number of files that the defaults lists of one composition include, the same file several times too."""
_TOO_LARGE = f"holds more than {MOST_VALUES:,} values, or texts of as many times 100 characters, with its aliases repeated; shorten it"
_TAGS = {
    yaml.ScalarEvent: ("!!str", "!!int", "!!float", "!!bool", "!!null"),
    yaml.SequenceStartEvent: ("!!seq",),
    yaml.MappingStartEvent: ("!!map",),
}
"""The tags of plain data, by the kind of value."""
_NULLS = ("", "~", "null")
_EVENTS = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Loader: Any = get_yaml_loader()
if yaml.__with_libyaml__:

    class _FastLoader(yaml.cyaml.CParser, _Loader):  # type: ignore[misc]
        """OmegaConf's loader on libyaml, which is several times as fast as PyYAML's own parser."""

        def __init__(self, text: str) -> None:
            super().__init__(text)
            SafeConstructor.__init__(self)  # type: ignore[no-untyped-call]
            Resolver.__init__(self)  # type: ignore[no-untyped-call]

    _Loader = _FastLoader


@dataclass(frozen=True)
class _File:
    """A config file as it was first read."""

    source: ConfigSource
    header: dict[str, str | None]
    values: dict[Any, Any]


class ConfigCache(dict[str, _File]):
    """Config files by path; later compositions use them, even if the files have changed."""


class _Inclusions(list[Any]):
    """The defaults list of a file, which Hydra copies whenever it includes the file: counts the entries of all copies."""

    def __init__(self, defaults: list[Any], config_path: str, counted: list[int]) -> None:
        super().__init__(defaults)
        self._config_path, self._counted = config_path, counted

    def __deepcopy__(self, memo: Any) -> list[Any]:
        self._counted[0] += len(self)
        if self._counted[0] > MOST_INCLUSIONS:
            raise ConfigError(
                f"{self._config_path}: its defaults list and those of other files include more than {MOST_INCLUSIONS:,} files in all; "
                "include fewer"
            )
        return deepcopy(list(self), memo)


class _Repository(ConfigRepository):
    """Hydra's config repository: opens only declared sources, and reads each file once."""

    def __init__(self, config_search_path: ConfigSearchPath, cache: ConfigCache) -> None:
        super().__init__(config_search_path)
        self._cache = cache
        self._included = [0]

    def __deepcopy__(self, memo: object) -> _Repository:
        """Hydra copies it for each composition, which may open other sources and counts its own files."""
        copied = copy(self)
        copied._included = [0]
        return copied

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Check every source before Hydra opens it, which imports the packages that `pkg://` and `structured://` name."""
        problems = [
            problem for item in config_search_path.get_path() if (problem := _source_problem(item.provider, item.path))
        ]
        if problems:
            raise ConfigError(problems)
        super().initialize_sources(config_search_path)

    def load_config(self, config_path: str) -> ConfigResult | None:
        found = self._from_file(config_path) or super().load_config(config_path)
        if found is None:
            return None
        if unpacked := _package_problem(config_path, found):
            raise ConfigError(unpacked)
        found.defaults_list = _Inclusions(found.defaults_list or [], config_path, self._included)
        return found

    def _from_file(self, config_path: str) -> ConfigResult | None:
        """Return what Hydra would read of a file; None for schemas, and for missing or invalid files, which Hydra reports."""
        if config_path not in self._cache:
            source = self._find_object_source(config_path, ObjectType.CONFIG)
            if source is None or source.scheme() not in ("file", "pkg"):
                return None
            text = _text_of(source, config_path)
            if problem := _content_problem(text):
                raise ConfigError(f"{source.path}/{source._normalize_file_name(config_path)}:{problem}")
            values = _mapping_in(text)
            if values is None:
                return None
            self._cache[config_path] = _File(source, ConfigSource._get_header_dict(text[:512]), values)
        file = self._cache[config_path]
        content = OmegaConf.create(file.values)
        found = ConfigResult(file.source.provider, file.source.full_path(), content, dict(file.header))
        defaults = self._extract_defaults_list(config_path, content)
        found.defaults_list = self._create_defaults_list(config_path, defaults)
        return found

    def text_of(self, config_path: str) -> str:
        """Return the text of an option's file; empty for a schema, and where there is no such file that can be read."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        try:
            text = _text_of(source, config_path) if source is not None else ""
        except (OSError, UnicodeDecodeError):
            return ""
        return "" if _content_problem(text) else text

    def config_exists(self, config_path: str) -> bool:
        return config_path in self._cache or super().config_exists(config_path)


def _package_problem(config_path: str, found: ConfigResult) -> str | None:
    """Return what is wrong with an option of a group that takes several: without a `@package` line it would replace the whole group."""
    group, _, option = config_path.removesuffix(".yaml").rpartition("/")
    here = any(item.package == "" for item in found.defaults_list or ())  # as Hydra reads `_here_`
    if group.replace("/", ".") not in (*LIST_GROUPS, *NAMED_SETS) or found.header.get("package"):
        return None
    if not here and not found.config:  # only a choice of other options
        return None
    scheme, _, place = found.path.partition("://")
    folder = place.replace(".", "/") if scheme == "pkg" else place
    line = f"# @package {group.replace('/', '.')}.{option}"
    return f"{group}={option}: {folder}/{group}/{option}.yaml has no package line; write {line!r} as its first line"


def _source_problem(provider: str | None, path: str | None) -> str | None:
    """Return why Hydra must not open an entry of the search path; None for directories and declared packages.

    Only `hydra.searchpath` is checked: its entries come from the command line or a file. The others are built in, come from
    installed extensions, or are checked as `--config-dir`.
    """
    if not str(provider).startswith("hydra.searchpath"):
        return None
    text = str(path)
    scheme, _, place = text.rpartition("://")
    packages = [f"{point.module.partition('.')[0]}.conf" for point in extensions()]
    if scheme == "pkg" and place.strip("/") in packages:
        return None
    if scheme in ("", "file") and Path(place).is_dir():
        return None
    expected = "an existing directory"
    if scheme not in ("", "file"):
        expected = ", ".join(["a directory", *(f"pkg://{name}" for name in packages)])
    return f"hydra.searchpath: got {text!r}, expected {expected}; nothing was imported"


def _text_of(source: ConfigSource, config_path: str) -> str:
    """Return the text of a config file, or as much of it as shows that it is too large; empty for schemas."""
    name = source._normalize_file_name(config_path)
    if source.scheme() == "file":
        place: Any = Path(source.path, name)
    elif source.scheme() == "pkg":
        place = resources.files(source.path).joinpath(name)
    else:
        return ""
    with place.open(encoding="utf-8") as file:
        return file.read(100 * MOST_VALUES + 1)  # type: ignore[no-any-return]


def _mapping_in(text: str) -> dict[Any, Any] | None:
    """Return the mapping that a YAML document holds, which may be empty; None if it is something else, or no valid YAML."""
    try:
        values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, KeyError):
        return None
    return values if isinstance(values, dict) else {} if values is None else None


def _content_problem(text: str) -> str:
    """Return why a YAML document must not be read: it is too large, or a tag makes anything but plain data.

    The problem begins with its line if it has one. Empty if there is none, or for invalid YAML, which Hydra reports. Aliases
    of aliases can make billions of values of a few lines, so that they are counted before any is made.
    """
    if len(text) > 100 * MOST_VALUES:
        return f" {_TOO_LARGE}"
    sizes: dict[str, float] = {}
    opened: list[list[Any]] = [["", 0.0]]  # anchor and size of each collection around the current event
    try:
        for event in yaml.parse(text, Loader=_EVENTS):
            if problem := _tag_problem(event):
                return f"{event.start_mark.line + 1}: {problem}"
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append([event.anchor, 1.0])
            elif isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
                anchor, size = _finished(event, opened, sizes)
                if anchor:
                    sizes[anchor] = size
                opened[-1][1] += size
            if sum(size for _, size in opened) > MOST_VALUES:
                return f" {_TOO_LARGE}"
            if len(opened) > MOST_LEVELS:
                return f" nests values more than {MOST_LEVELS} levels deep; fix this file"
    except (yaml.YAMLError, ValueError):
        pass
    return ""


def _tag_problem(event: Any) -> str:
    """Return why the explicit tag of a YAML event makes no plain data; empty without such a tag.

    Hydra's loader makes bytes, dates, sets, pairs and paths of some tags, and nothing of a text after `!!null`.
    """
    if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) or event.tag in (None, "!"):
        return ""
    name = event.tag.replace("tag:yaml.org,2002:", "!!", 1)
    known = _TAGS[type(event)]
    if name not in known:
        return f"got the tag {shorten(name)}, expected plain data; remove the tag, or use one of {', '.join(known)}"
    try:
        fits = not isinstance(event, yaml.ScalarEvent) or _value_of(event) is not None or event.value.lower() in _NULLS
    except (ValueError, IndexError, KeyError):
        fits = False
    return "" if fits else f"got the tag {name} before another value; remove the tag, or correct the value"


def _value_of(event: yaml.ScalarEvent) -> Any:
    return SafeConstructor().construct_object(yaml.ScalarNode(event.tag, event.value))  # type: ignore[no-untyped-call]


def _finished(event: Any, opened: list[list[Any]], sizes: dict[str, float]) -> tuple[str | None, float]:
    """Return the anchor and the size of the value that ends with an event."""
    if isinstance(event, yaml.CollectionEndEvent):
        return tuple(opened.pop())
    if isinstance(event, yaml.AliasEvent):  # one of a collection that contains it has no end
        inside = any(event.anchor == anchor for anchor, _ in opened)
        return None, math.inf if inside else sizes.get(event.anchor, 1.0)
    return event.anchor, 1.0 + len(event.value) / 100


def use_repository(loader: Any, cache: ConfigCache | None) -> None:
    """Make Hydra's loader read config files from declared sources only, and through the cache if there is one."""
    loader.repository = _Repository(loader.config_search_path, ConfigCache() if cache is None else cache)
