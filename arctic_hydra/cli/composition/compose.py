"""Composes a command line into plain data.

A config is composed and resolved once; from then on it is plain data, in which no text is an interpolation. Interpolations can
call the resolvers in `RESOLVERS` only, none of which constructs objects or reads files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.base import Container, Node
from omegaconf.basecontainer import BaseContainer

from arctic_hydra import config
from arctic_hydra.cli.composition.compose_errors import RESOLVERS, no_whole_config, translate_error
from arctic_hydra.cli.composition.config_sources import ConfigCache
from arctic_hydra.cli.composition.search_path import hydra_with
from arctic_hydra.component import BY_TARGET, MISSING_VALUE, Component, flatten, registered
from arctic_hydra.cross_checks import SLOTS, supported
from arctic_hydra.distributed import override_gpu_count
from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.hub import absolute_paths
from arctic_hydra.human_numbers import shorten
from arctic_hydra.instantiate import refused_target, trusted_keys, unset

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
PLUGINS = {
    BASIC_LAUNCHER,
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.arctic_hydra.local.LocalLauncher",
    "hydra_plugins.arctic_hydra.slurm.SlurmLauncher",
    "hydra_plugins.arctic_hydra.optuna.OptunaSweeper",
}
"""The launchers and sweepers that a config may name."""

_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Those in the gap, U+DC80 to U+DCFF, are how Python represents the bytes of a file name that is not in UTF-8."""
MOST_RESOLVED = 3_000
"""Largest number of values that the interpolations of one composition make, with 1,000 characters of text as one more."""


@dataclass(frozen=True)
class Composed:
    """A composed command line: everything that is used of it as plain, resolved data."""

    job: dict[str, Any]
    """The config of the run."""
    launcher: dict[str, Any]
    """Settings of the launcher, with the name of its class as `_target_`."""
    sweeper: dict[str, Any]
    """Settings of the sweeper, with the name of its class as `_target_`."""
    sweep_dir: str
    """`hydra.sweep.dir`: directory of the sweep; empty if it is derived from the jobs."""
    choices: dict[str, Any]
    """The chosen option of each config group."""
    unresolved: DictConfig
    """The config as it was composed, to be printed."""
    followed: list[str] = field(default_factory=list)
    """The options that nobody chose and that follow from the trainer or the data, as lines of text."""


def compose_config(
    overrides: list[str], config_name: str, config_dir: str | None = None, cache: ConfigCache | None = None
) -> Composed:
    """Compose and resolve a config; nothing is instantiated or imported.

    With a cache, files that an earlier composition read are not read again. Raises ConfigError instead of the errors of
    Hydra and OmegaConf.
    """
    with hydra_with(config_dir, cache) as loader, closed_resolvers():
        try:
            try:
                composed = _compose(loader, config_name, overrides)
                trainer = _trainer_of_data(loader, config_name, overrides, composed)
            except Exception:  # a key may be one of the trainer that follows from the data
                others = [item for item in overrides if not item.lstrip("+~").startswith("trainer.")]
                if others == overrides or not any(item.startswith("data=") for item in overrides):
                    raise
                composed = _compose(loader, config_name, others)
                if not (trainer := _trainer_of_data(loader, config_name, others, composed)):
                    raise
            if trainer:
                line = f"trainer={trainer}, which data={composed.choices['data']} is for"
                overrides = [*overrides, f"trainer={trainer}"]
                composed = _compose(loader, config_name, overrides)
                composed = replace(composed, followed=[line, *composed.followed])
        except ArcticHydraError:
            raise
        except Exception as error:  # Hydra, OmegaConf, YAML and the grammar of overrides each raise their own
            in_hydra = any(item.startswith("hydra.") for item in overrides)  # the unknown key may be one of Hydra's own
            raise translate_error(
                error,
                overrides,
                lambda kept, name=config_name: compose(name, overrides=kept, return_hydra_config=in_hydra),
            ) from error
    _refuse_trust_in_files(composed.job, overrides)
    return composed


def _compose(loader: ConfigLoader, config_name: str, overrides: list[str]) -> Composed:
    """Compose and resolve a config with the options that its trainer names first."""
    trainer, first = _first_options(loader, config_name, overrides)
    overrides = [*overrides, *(f"{group}={option}" for group, option in first.items())]
    composed = _resolve(compose(config_name, overrides=overrides, return_hydra_config=True))
    lines = [f"{group}={option}, the first that trainer={trainer} names" for group, option in first.items()]
    return replace(composed, followed=lines)


def _trainer_of_data(loader: ConfigLoader, config_name: str, overrides: list[str], composed: Composed) -> str:
    """Return the built-in trainer for the data that was chosen, if nobody chose a trainer and the default takes no such data.

    Empty also if several trainers name the class of this data first, as those of preference pairs do.
    """
    nodes = [composed.job.get(slot) for slot in ("data", "trainer")]
    data, trainer = (BY_TARGET.get(node.get("_target_", "")) if isinstance(node, dict) else None for node in nodes)
    if data is None or trainer is None or issubclass(data, supported(trainer, "data") or Component):
        return ""
    found = loader.compute_defaults_list(config_name, overrides, RunMode.RUN).overrides.override_choices
    if "data" not in found or "trainer" in found:
        return ""
    own = {name: cls for (_, name), cls in registered("trainer").items() if cls.__module__.startswith("arctic_hydra.")}
    fitting = [name for name, cls in own.items() if issubclass(data, supported(cls, "data")[:1])]
    return fitting[0] if len(fitting) == 1 else ""


def _first_options(loader: ConfigLoader, config_name: str, overrides: list[str]) -> tuple[str, dict[str, str]]:
    """Return the trainer, and by group the option that it names first, where nobody chose another one.

    An option is chosen by an override on the command line or in a config file. A class without a config file of its name in
    the group, such as a base class, is not an option; where a hint names none, the default of the config remains.
    """
    trainers = registered("trainer")
    if all(cls.__module__.startswith("arctic_hydra.") for cls in trainers.values()):
        return "", {}  # the config's defaults are theirs
    found = loader.compute_defaults_list(config_name, overrides, RunMode.RUN).overrides
    name = str(found.known_choices.get("trainer"))
    chosen: dict[str, str] = {}
    trainer = trainers.get(("trainer", name))
    for slot in SLOTS:
        if trainer is None or slot in found.override_choices:
            continue
        options = loader.get_group_options(slot, ObjectType.CONFIG)
        first = next((cls.option_name for cls in supported(trainer, slot) if cls.option_name in options), None)
        if first is not None and first != found.known_choices.get(slot):
            chosen[slot] = first
    return name, chosen


def _refuse_trust_in_files(job: dict[str, Any], overrides: list[str]) -> None:
    """Raise ConfigError unless the user asks on the command line for code of a model's repository to run."""
    asked = {item.lstrip("+").lower() for item in overrides}
    trusted = trusted_keys(job)
    if problems := [
        f"{key}: got true from a config file, but it lets code of another repository run; pass {key}=true on the command line"
        for key in trusted
        if f"{key}=true" not in asked
    ]:
        raise ConfigError(problems)


@contextmanager
def closed_resolvers() -> Iterator[None]:
    """Let interpolations call the resolvers in `RESOLVERS` only, and make no more than `MOST_RESOLVED` values.

    Each one counts whenever it is evaluated: with ten references per key, a few keys that refer to each other would make
    billions of them.
    """
    registered = BaseContainer._resolvers
    evaluate = {name: getattr(Container, name) for name in ("_resolve_node_interpolation", "_evaluate_custom_resolver")}
    left = [MOST_RESOLVED]

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def evaluated(container: Container, /, *args: Any, **kwargs: Any) -> Any:
            value = method(container, *args, **kwargs) if left[0] >= 0 else None  # OmegaConf ignores some errors
            left[0] -= _size(value)
            if left[0] < 0:
                raise ConfigError(
                    f"{container._get_full_key(None) or 'config'}: its interpolations make more than {MOST_RESOLVED:,} values, or texts "
                    "of as many times 1,000 characters; refer to fewer or shorter ones"
                )
            return value

        return evaluated

    BaseContainer._resolvers = {name: registered[name] for name in RESOLVERS if name in registered}
    for name, method in evaluate.items():
        setattr(Container, name, counted(method))
    try:
        yield
    finally:
        BaseContainer._resolvers = registered
        for name, method in evaluate.items():
            setattr(Container, name, method)


def _size(value: Any) -> int:
    """Return the number of values in what an interpolation refers to; 1,000 characters of text count as one more."""
    if isinstance(value, Container):
        value = OmegaConf.to_container(value, resolve=False)
    elif isinstance(value, Node):
        value = value._value()
    if isinstance(value, Mapping):
        return 1 + sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return 1 + sum(map(_size, value))
    return 1 + (len(value) // 1000 if isinstance(value, str | bytes) else 0)


def remove_hydra(cfg: DictConfig) -> None:
    """Remove Hydra's own node from a composed config."""
    with open_dict(cfg):
        cfg.pop("hydra", None)


def _resolve(cfg: DictConfig) -> Composed:
    if OmegaConf.get_type(cfg) is not config.Run:  # as with a file that only writes the name of the class
        raise ConfigError(no_whole_config(cfg.hydra.job.config_name))
    hydra = cfg.hydra
    if refused := list(_classes_in(OmegaConf.to_container(hydra, resolve=False), "hydra")):
        raise ConfigError(refused)
    return Composed(
        job={str(key): _plain(cfg, str(key)) for key in cfg if key != "hydra"},
        launcher=_plugin(hydra, "launcher"),
        sweeper=_plugin(hydra, "sweeper"),
        sweep_dir=str(hydra.sweep.dir or ""),
        choices=_plain(hydra.runtime, "choices"),
        unresolved=cfg,
    )


def _plain(node: DictConfig, key: str) -> Any:
    """Return one entry of a node as plain, resolved data; enums become their names."""
    if OmegaConf.is_missing(node, key):
        return MISSING_VALUE
    value = node[key]
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    return value.name if isinstance(value, Enum) else value


def _plugin(hydra: DictConfig, name: str) -> dict[str, Any]:
    """Return the settings of the launcher or sweeper, whose class is one of `PLUGINS` and whose keys are those of its schema."""
    key = f"hydra.{name}"
    if OmegaConf.is_interpolation(hydra, name):
        raise ConfigError(f"{key}: got an interpolation, expected an option; pass hydra/{name}=<option>")
    settings = _plain(hydra, name)
    target = settings.get("_target_") if isinstance(settings, dict) else settings
    if not isinstance(target, str) or target not in PLUGINS:
        raise ConfigError(refused_target(f"{key}._target_", target))
    schema = OmegaConf.get_type(hydra[name])
    known = [item.name for item in fields(schema)] if is_dataclass(schema) else ["_target_"]
    listed = ", ".join(other for other in known if other != "_target_")
    expected = f"one of {listed}" if listed else "none"
    unknown = [f"{key}.{item}: there is no such key; expected {expected}" for item in settings if item not in known]
    if unknown:
        raise ConfigError(unknown)
    return settings  # type: ignore[no-any-return]


def _classes_in(node: Any, key: str) -> Iterator[str]:
    """Yield a problem for every class that Hydra's own node names, such as a callback, other than launcher and sweeper.

    Those of its logging configuration are ignored, as that configuration is.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            child = f"{key}.{name}"
            if name == "_target_" and value is not None and key not in ("hydra.launcher", "hydra.sweeper"):
                yield refused_target(child, value)
            elif child not in ("hydra.job_logging", "hydra.hydra_logging"):
                yield from _classes_in(value, child)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _classes_in(value, f"{key}[{index}]")


def apply_launcher_resources(job: dict[str, Any], launcher: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with `nnodes` and `ranks` set to what its launcher requests from a cluster.

    This applies to launchers with `nodes` and `gpus_per_node`; the GPUs of this machine are ignored then.
    """
    several = job["nnodes"] != 1 or job["hostfile"] is not None
    if "gpus_per_node" not in launcher:
        if several:
            raise ConfigError(
                "nnodes, hostfile: the jobs of a sweep run on this machine only; pass hydra/launcher=slurm to use several"
            )
        return job
    if several:
        raise ConfigError("nnodes, hostfile: have no effect in SLURM; pass hydra.launcher.nodes=<machines>")
    override_gpu_count(launcher["gpus_per_node"] or 0)
    ranks = str(launcher["gpus_per_node"] or 1) if job["ranks"] == "auto" else job["ranks"]
    return {**job, "nnodes": launcher["nodes"], "ranks": ranks}


def with_paths(job: dict[str, Any]) -> dict[str, Any]:
    """Return a composed config with absolute paths; raises ConfigError for required keys that are not set.

    It does so too for text that no file can hold: characters of UTF-16 pairs alone, which YAML can write.
    """
    leaves = flatten(job)
    if missing := sorted(key for key, value in leaves.items() if value == MISSING_VALUE):
        raise ConfigError([unset(key) for key in missing])
    if large := [key for key, value in leaves.items() if isinstance(value, int) and value.bit_length() > 1024]:
        raise ConfigError(
            [f"{key}: got a whole number of more than 1,024 bits; expected a smaller one" for key in large]
        )
    if problems := [
        f"{key}: got {shorten(value)}, which holds half of a surrogate pair; expected text that UTF-8 can encode"
        for key, value in leaves.items()
        if _LONE_SURROGATE.search(key + json.dumps(value, ensure_ascii=False, default=str))
    ]:
        raise ConfigError(problems)
    return absolute_paths(job, Path.cwd())  # type: ignore[no-any-return]
