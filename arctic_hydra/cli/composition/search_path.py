"""Hydra's search path: this package, installed extensions and `--config-dir`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra  # public functions take no search path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime

from arctic_hydra.cli.composition.config_sources import ConfigCache, use_repository
from arctic_hydra.cli.composition.schemas import store_schemas


def conf_dir() -> str:
    """Return the absolute path of the config groups: inside an installed package, next to it in a source tree."""
    package = Path(__file__).resolve().parents[2]
    inside = package / "conf"
    return str(inside if (inside / "config.yaml").is_file() else package.parent / "conf")


@contextmanager
def hydra_with(config_dir: str | None = None, cache: ConfigCache | None = None) -> Iterator[ConfigLoader]:
    """Initialize Hydra with our options, those of extensions and those in `config_dir`; yield its config loader.

    With a cache, files that an earlier composition read are not read again. The override `hydra.searchpath` cannot
    replace `config_dir`: Hydra applies it after it has loaded the primary config.
    """
    store_schemas()
    with _global_state_kept(), initialize_config_dir(conf_dir(), version_base="1.3", job_name="arctic_hydra"):
        if config_dir:
            path = GlobalHydra.instance().config_loader().get_search_path()
            # After our options and those of extensions, so that it cannot shadow them by accident; Hydra requires schemas last.
            path.prepend("command-line", f"file://{Path(config_dir).absolute()}", anchor="schema")
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("arctic_hydra", path)
        loader: Any = GlobalHydra.instance().config_loader()
        use_repository(loader, cache)
        yield loader


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Clear Hydra's global state while the context is open: the caller may be a Hydra application of its own."""
    before, job = GlobalHydra.instance().hydra, JobRuntime.instance().get("name")
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before
        JobRuntime.instance().set("name", job)
