"""Where config files are read from: directories and declared packages only, through a cache.

All jobs of a sweep compose from the files as they were first read.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository  # the one place where Hydra reads config files
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult

from arctic_hydra.component import extensions
from arctic_hydra.errors import ConfigError

LIST_GROUPS = ("checkpoint", "tracking", "callback", "converter")
"""Groups of which a run takes several options."""
NAMED_SETS = ("data.sources", "data.eval_sources")


class ConfigCache(dict[str, ConfigResult]):
    """Loaded configs by path; later compositions use them, even if the files have changed."""

    def __deepcopy__(self, memo: object) -> ConfigCache:
        return self  # Hydra copies its config repository; all copies share one cache


class _Repository(ConfigRepository):
    """Hydra's config repository: opens only declared sources, and reads each file once."""

    def __init__(self, config_search_path: ConfigSearchPath, cache: ConfigCache) -> None:
        super().__init__(config_search_path)
        self._cache = cache

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Check every source before Hydra opens it, which imports the packages that `pkg://` and `structured://` name."""
        problems = [
            problem for item in config_search_path.get_path() if (problem := _source_problem(item.provider, item.path))
        ]
        if problems:
            raise ConfigError(problems)
        super().initialize_sources(config_search_path)

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path in self._cache:
            return deepcopy(self._cache[config_path])
        found = super().load_config(config_path)
        if found is not None:
            if problem := _package_problem(config_path, found):
                raise ConfigError(problem)
            self._cache[config_path] = deepcopy(found)
        return found

    def config_exists(self, config_path: str) -> bool:
        return config_path in self._cache or super().config_exists(config_path)


def _package_problem(config_path: str, found: ConfigResult) -> str | None:
    """Return what is wrong with an option of a group that takes several: without a package line it would replace the group."""
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


def use_repository(loader: Any, cache: ConfigCache | None) -> None:
    """Make Hydra's loader read config files from declared sources only, and through the cache if there is one."""
    loader.repository = _Repository(loader.config_search_path, ConfigCache() if cache is None else cache)
