"""A cache of config files: all jobs of a sweep compose from the files as they were first read."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hydra._internal.config_repository import ConfigRepository  # the one place where Hydra reads config files
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult


class ConfigCache(dict[str, ConfigResult]):
    """Loaded configs by path; later compositions use them, even if the files have changed."""

    def __deepcopy__(self, memo: object) -> ConfigCache:
        return self  # Hydra copies its config repository; all copies share one cache


class _CachingRepository(ConfigRepository):
    """Hydra's config repository, with a cache."""

    def __init__(self, config_search_path: ConfigSearchPath, cache: ConfigCache) -> None:
        super().__init__(config_search_path)
        self._cache = cache

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path in self._cache:
            return deepcopy(self._cache[config_path])
        found = super().load_config(config_path)
        if found is not None:
            self._cache[config_path] = deepcopy(found)
        return found

    def config_exists(self, config_path: str) -> bool:
        return config_path in self._cache or super().config_exists(config_path)


def read_through_cache(cache: ConfigCache, loader: Any) -> None:
    """Make Hydra's loader read config files through the cache."""
    loader.repository = _CachingRepository(loader.config_search_path, cache)
