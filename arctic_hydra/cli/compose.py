"""Composes a command line into a config, and checks its targets."""

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
    """Compose a config without running anything, and check all of its targets, including those in Hydra's own node.

    With a cache, files that an earlier composition read are not read again. Raises ConfigError instead of the errors of
    Hydra and OmegaConf.
    """
    with hydra_with(config_dir, cache):
        try:
            cfg = compose(config_name, overrides=overrides, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            in_hydra = any(item.startswith("hydra.") for item in overrides)  # the unknown key may be one of Hydra's own
            raise translate_error(
                error,
                overrides,
                lambda kept: compose(config_name, overrides=kept, return_hydra_config=in_hydra),
            ) from error
    check_targets(OmegaConf.to_container(cfg, resolve=False))
    return cfg


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return the composed config without Hydra's own node."""
    job = cfg.copy()
    OmegaConf.set_struct(job, False)
    job.pop("hydra", None)
    OmegaConf.set_struct(job, True)
    return job


def apply_launcher_resources(job: DictConfig, launcher: DictConfig) -> None:
    """Set `nnodes` and `ranks` of a config (without Hydra's node) to what its launcher requests from a cluster.

    This applies to launchers with `nodes` and `gpus_per_node`; the GPUs of this machine are ignored then.
    """
    several = job.nnodes != 1 or job.hostfile is not None
    if "gpus_per_node" not in launcher:
        if several:
            raise ConfigError(
                "nnodes, hostfile: the jobs of a sweep run on this machine only; pass hydra/launcher=slurm to use several"
            )
        return
    if several:
        raise ConfigError("nnodes, hostfile: have no effect in SLURM; pass hydra.launcher.nodes=<machines>")
    job.nnodes = launcher.nodes
    job.ranks = str(launcher.gpus_per_node or 1) if job.ranks == "auto" else job.ranks
    override_gpu_count(launcher.gpus_per_node or 0)


def resolved(job: DictConfig) -> dict[str, Any]:
    """Return a composed config as a plain tree with absolute paths; raises ConfigError for required keys that are not set."""
    missing = sorted(OmegaConf.missing_keys(job))
    if missing:
        raise ConfigError([f"{key}: required, but not set; pass {key}=<value>" for key in missing])
    tree = to_plain(job)
    check_targets(tree)
    return config.absolute_paths(tree, Path.cwd())  # type: ignore[no-any-return]
