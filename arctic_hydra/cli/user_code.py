"""Code of the user on the command line: the file of `code=`, whose components become options without a YAML file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore

from arctic_hydra import component
from arctic_hydra.cli import overrides
from arctic_hydra.cli.composition.config_sources import LIST_GROUPS
from arctic_hydra.component import registered
from arctic_hydra.errors import ConfigError, printable
from arctic_hydra.files import code_file
from arctic_hydra.files.extensions import load_extensions
from arctic_hydra.model import registry
from arctic_hydra.model.registry import registered_specs
from arctic_hydra.redaction import mask

_SOURCES = ("data/sources", "data/eval_sources")


def load(arguments: Sequence[str]) -> list[str]:
    """Import the installed extensions and the file that `code=<path>` names; return the other arguments.

    A broken extension is a warning, as this command may not use it. Raises ConfigError if the file cannot be imported or
    registers no component.
    """
    for text in load_extensions():
        print(f"warning: {printable(mask(text))}", file=sys.stderr)
    others = code_file.take(arguments)
    if code_file.typed_arguments():
        found = [key for key in registered() if key[1].startswith(code_file.PREFIX)]
        if not found and not any(code_file.owns(spec.create.__module__) for spec in registered_specs()):
            raise ConfigError(
                f"{code_file.typed_arguments()[0]}: registers no component; decorate a class with "
                "@component(group=..., name=...), or a function with @register_model_spec(...)"
            )
        known = {group for (group, _), cls in registered().items() if cls.__module__.startswith("arctic_hydra.")}
        for group, option in found:
            if group not in known:
                raise ConfigError(
                    f"{code_file.typed_arguments()[0]}: registers {option.removeprefix(code_file.PREFIX)} in the group {group!r}, which no "
                    f"run has; expected @component(group=...) with one of {', '.join(sorted(known))}"
                )
            _store_option(group, option)
    return others


def forget() -> None:
    """Unregister the components of the file of `code=`, so that this process can load another one, or the edited file again."""
    for key, cls in registered().items():
        if key[1].startswith(code_file.PREFIX):
            del component._REGISTRY[key]
            component.BY_TARGET.pop(f"{cls.__module__}.{cls.__qualname__}", None)
    for spec in registered_specs():
        if code_file.owns(spec.create.__module__):
            del registry._SPECS[spec.name]
    _remove_options(ConfigStore.instance().repo)
    code_file.forget()
    overrides.forget_fields()


def _remove_options(stored: dict[str, Any]) -> None:
    """Remove the options of the file, and their schemas, from a group of Hydra's config store and the groups in it."""
    for name, item in list(stored.items()):
        if isinstance(item, dict):
            _remove_options(item)
        elif name.startswith(code_file.PREFIX):
            del stored[name]


def _store_option(group: str, option: str) -> None:
    """Store what the YAML file of the option would hold."""
    node: dict[str, Any] = {"defaults": [f"/schema/{group}/{option}@_here_", "_self_"]}
    if group == "data":
        node["defaults"][1:1] = [{"sources": []}, {"eval_sources": []}]
    name = option.removeprefix(code_file.PREFIX)
    for folder in (group, *_SOURCES) if group == "source" else [group]:
        package = f"{folder.replace('/', '.')}.{name}" if folder in (*LIST_GROUPS, *_SOURCES) else None
        ConfigStore.instance().store(group=folder, name=option, node=node, package=package, provider="code")
