"""Composes a command line into plain data.

A config is composed, resolved once, and from then on plain data, in which no text is an interpolation. Only the resolvers
in `RESOLVERS` exist meanwhile: those that construct objects or read files do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer

from arctic_hydra import config
from arctic_hydra.cli.compose_errors import RESOLVERS, translate_error
from arctic_hydra.cli.config_sources import ConfigCache
from arctic_hydra.cli.search_path import hydra_with
from arctic_hydra.cli.trainer_defaults import first_options
from arctic_hydra.component import MISSING_VALUE, flatten
from arctic_hydra.distributed import override_gpu_count
from arctic_hydra.errors import ArcticHydraError, ConfigError
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
    """The options that nobody chose and the trainer names first, as lines of text."""


def compose_config(
    overrides: list[str], config_name: str, config_dir: str | None = None, cache: ConfigCache | None = None
) -> Composed:
    """Compose and resolve a config; nothing is instantiated or imported.

    With a cache, files that an earlier composition read are not read again. Raises ConfigError instead of the errors of
    Hydra and OmegaConf.
    """
    with hydra_with(config_dir, cache) as loader, closed_resolvers():
        try:
            trainer, first = first_options(loader, config_name, overrides)
            overrides = [*overrides, *(f"{group}={option}" for group, option in first.items())]
            cfg = compose(config_name, overrides=overrides, return_hydra_config=True)
            composed = _resolve(cfg)
        except ArcticHydraError:
            raise
        except Exception as error:  # Hydra, OmegaConf, YAML and the grammar of overrides each raise their own
            in_hydra = any(item.startswith("hydra.") for item in overrides)  # the unknown key may be one of Hydra's own
            raise translate_error(
                error,
                overrides,
                lambda kept: compose(config_name, overrides=kept, return_hydra_config=in_hydra),
            ) from error
    _refuse_trust_in_files(composed.job, overrides)
    return replace(
        composed,
        followed=[f"{group}={option}, the first that trainer={trainer} names" for group, option in first.items()],
    )


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
    """Let interpolations call the resolvers in `RESOLVERS` only."""
    registered = BaseContainer._resolvers
    BaseContainer._resolvers = {name: registered[name] for name in RESOLVERS if name in registered}
    try:
        yield
    finally:
        BaseContainer._resolvers = registered


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's own node."""
    job = cfg.copy()
    OmegaConf.set_struct(job, False)
    job.pop("hydra", None)
    OmegaConf.set_struct(job, True)
    return job


def _resolve(cfg: DictConfig) -> Composed:
    if "_target_" not in cfg:
        raise ConfigError(
            f"--config-name: got {cfg.hydra.job.config_name!r}, which is no whole config; expected a file that begins with "
            "`defaults: [config, _self_]`"
        )
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
    """Return a composed config with absolute paths; raises ConfigError for required keys that are not set."""
    missing = sorted(key for key, value in flatten(job).items() if value == MISSING_VALUE)
    if missing:
        raise ConfigError([unset(key) for key in missing])
    return config.absolute_paths(job, Path.cwd())  # type: ignore[no-any-return]
