"""The schemas of the registered components, as Hydra's config store holds them.

OmegaConf makes a schema of its class when a config first uses it, because a composition uses few of them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import OmegaConf

from arctic_hydra import config
from arctic_hydra.component import registered


class SchemaNode(ConfigNode):
    """An entry of the store whose `node` is made of a class when it is first read."""

    def __init__(self, name: str, group: str, cls: type) -> None:
        self.name, self.group, self.package, self.provider = name, group, None, "arctic_hydra"
        self._cls = cls

    def __getattr__(self, name: str) -> Any:
        if name != "node":
            raise AttributeError(name)
        return _structured(self._cls)


@cache
def _structured(cls: type) -> Any:
    return OmegaConf.structured(cls)


def store_schemas() -> None:
    """Store `schema/run`, and `schema/<group>/<name>` for each component that is registered by now."""
    root = ConfigStore.instance().repo.setdefault("schema", {})
    root["run.yaml"] = SchemaNode("run.yaml", "schema", config.Run)
    for (group, option), cls in registered().items():
        root.setdefault(group, {})[f"{option}.yaml"] = SchemaNode(f"{option}.yaml", f"schema/{group}", cls)
