"""A cache of config files: the jobs of a sweep compose from the files as they were first read."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult


class Memory(dict[str, ConfigResult]):
    """What compositions have read, by path of the config: the next one takes it from here, whatever the file holds by then."""

    def __deepcopy__(self, memo: object) -> Memory:
        return self  # Hydra copies what reads its files, and all copies share one memory


class _Remembering(ConfigRepository):
    """Hydra's reader of config files with a memory."""

    def __init__(self, config_search_path: ConfigSearchPath, memory: Memory) -> None:
        super().__init__(config_search_path)
        self._memory = memory

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path in self._memory:
            return deepcopy(self._memory[config_path])
        found = super().load_config(config_path)
        if found is not None:
            self._memory[config_path] = deepcopy(found)
        return found

    def config_exists(self, config_path: str) -> bool:
        return config_path in self._memory or super().config_exists(config_path)


def read_through(memory: Memory, loader: Any) -> None:
    """Have Hydra's loader read its files through the memory."""
    loader.repository = _Remembering(loader.config_search_path, memory)
