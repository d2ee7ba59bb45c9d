"""From a command line to a composed and checked config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arctic_hydra import config
from arctic_hydra.cli.compose_errors import translate_error
from arctic_hydra.cli.config_cache import ConfigCache
from arctic_hydra.cli.search_path import hydra_with
from arctic_hydra.component import check_targets, to_plain
from arctic_hydra.distributed import override_gpu_count
from arctic_hydra.errors import ConfigError


def compose_config(
    overrides: list[str], config_name: str, config_dir: str | None = None, cache: ConfigCache | None = None
) -> DictConfig:
    """Compose without running anything, and check every target of the result, Hydra's own node included.

    With a cache, files that an earlier composition read are not read again. Raises ConfigError in place of everything
    that Hydra and OmegaConf raise.
    """
    with hydra_with(config_dir, cache):
        try:
            cfg = compose(config_name, overrides=overrides, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            in_hydra = any(item.startswith("hydra.") for item in overrides)  # its keys may be what was mistyped
            raise translate_error(
                error,
                overrides,
                lambda kept: compose(config_name, overrides=kept, return_hydra_config=in_hydra),
            ) from error
    check_targets(OmegaConf.to_container(cfg, resolve=False))
    return cfg


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return the composed config less Hydra's own node."""
    job = cfg.copy()
    OmegaConf.set_struct(job, False)
    job.pop("hydra", None)
    OmegaConf.set_struct(job, True)
    return job


def apply_launcher_resources(job: DictConfig, launcher: DictConfig) -> None:
    """Give a config (less Hydra's node) the ranks of the machines that its launcher asks a cluster for.

    A launcher does so where it has `nodes` and `gpus_per_node`: those count then, not what this machine has.
    """
    several = job.nnodes != 1 or job.hostfile is not None
    if "gpus_per_node" not in launcher:
        if several:
            raise ConfigError(
                "nnodes, hostfile: a sweep's jobs run on this machine; pass hydra/launcher=slurm for more"
            )
        return
    if several:
        raise ConfigError("nnodes, hostfile: have no effect in SLURM; pass hydra.launcher.nodes=<machines>")
    job.nnodes = launcher.nodes
    job.ranks = str(launcher.gpus_per_node or 1) if job.ranks == "auto" else job.ranks
    override_gpu_count(launcher.gpus_per_node or 0)


def resolved(job: DictConfig) -> dict[str, Any]:
    """Return a composed config as a plain tree with paths absolute; raises ConfigError for what is required and missing."""
    missing = sorted(OmegaConf.missing_keys(job))
    if missing:
        raise ConfigError([f"{key}: required, but not set; pass {key}=<value>" for key in missing])
    tree = to_plain(job)
    check_targets(tree)
    return config.absolute_paths(tree, Path.cwd())  # type: ignore[no-any-return]
