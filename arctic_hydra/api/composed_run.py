"""`arctic_hydra.compose`: overrides, composed and checked as the command line does it."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arctic_hydra import component, config
from arctic_hydra.cli import command_line, user_code
from arctic_hydra.cli.composition.compose import compose_config, with_paths
from arctic_hydra.cli.overrides import flags, normalize
from arctic_hydra.errors import ConfigError, did_you_mean, shown_problems
from arctic_hydra.files import code_file
from arctic_hydra.launch.extended_run import with_overrides_of_extended_run
from arctic_hydra.launch.job import Job
from arctic_hydra.redaction import redact
from arctic_hydra.redaction.masking import learn_overrides
from arctic_hydra.report import html

COMPOSING = threading.RLock()
"""Held while a config is composed: Hydra's state, and the components of `code=`, are those of the process."""


class ComposedRun:
    """A composed and checked run, which `arctic_hydra.run` starts.

    The keys of the config are attributes (`composed.optimizer.lr`), and `str(composed)` is the config as YAML. Changing an
    attribute has no effect on the run, and is an error when it starts: compose again with another override.
    """

    def __init__(self, job: Job, tree: dict[str, Any], arguments: list[str], notes: list[str]) -> None:
        self.config: config.Run = job.run
        """The checked config, with numbers converted."""
        self.overrides: list[str] = job.overrides
        """The overrides, after the config's name and folder if they were given; secrets are hidden."""
        self.directory: Path = job.directory.path
        """Directory of the run, which need not exist."""
        self._job, self._tree, self._arguments, self._notes = job, tree, arguments, notes
        self._code = code_file.typed_arguments()
        self._built = asdict(job.run)  # plain values: the classes of `code=` are other ones after the next composition
        self._folder = Path.cwd()

    @property
    def run_id(self) -> str:
        """Hash of the settings that affect the result, which is the name of the directory."""
        return self.directory.name

    @property
    def is_changed(self) -> bool:
        """Whether a value of `config` was changed after it was composed."""
        return asdict(self.config) != self._built

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "config":  # not set yet, as while it is copied
            raise AttributeError(name)
        if name in _keys(self):
            return getattr(self.config, name)
        raise AttributeError(f"the config has no key {name!r}{did_you_mean(name, _keys(self))}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_keys(self)})

    def __str__(self) -> str:
        return component.to_yaml(redact(self._job.tree))

    def __repr__(self) -> str:
        return f"<composed run {self.config.name}/{self.run_id}: {' '.join(self.overrides) or 'the default'}>"

    def _repr_html_(self) -> str:
        title = html.escape(repr(self).strip("<>"))
        return f"<details><summary>{title}</summary><pre>{html.escape(str(self))}</pre></details>"


def _keys(composed: ComposedRun) -> list[str]:
    return [key for key in composed._job.tree if hasattr(composed.config, key)]


def compose(
    overrides: Iterable[str] = (), *, config_name: str | None = None, config_dir: str | None = None
) -> ComposedRun:
    """Compose and check a run; nothing is written, and neither torch nor a model is loaded.

    `overrides` are those of the command line, such as `["model=hf", "optimizer.lr=1e-4"]`; `config_name` and `config_dir`
    are its `--config-name` and `--config-dir`. Raises ConfigError with every problem found. What the machine lacks, such as
    a missing file, is reported by `run`.
    """
    with COMPOSING, masked_errors():
        options = read_overrides(overrides, config_name, config_dir)
        name, folder, given = options.config_name, options.config_dir, options.overrides
        composed = compose_config(given, name, folder)
        if command_line.is_launched(composed, given):
            raise ConfigError(
                f"hydra/launcher: got {composed.choices['hydra/launcher']}, which runs a sweep; pass the overrides to arctic_hydra.sweep"
            )
        command_line.refuse_hydra_overrides(given)
        arguments = [*flags(name, folder), *given]
        return ComposedRun(Job.of(with_paths(composed.job), arguments), composed.job, arguments, composed.followed)


def read_overrides(overrides: Iterable[str], config_name: str | None, config_dir: str | None) -> argparse.Namespace:
    """Import extensions and the file of `code=`, and return config name, config folder and overrides."""
    given = _texts(overrides)
    if options := [item for item in given if item.startswith("-")]:
        raise ConfigError(
            f"{options[0]}: is an option of the command line; expected overrides such as optimizer.lr=1e-4, config_name=<name> and "
            "config_dir=<folder>"
        )
    learn_overrides(given)
    user_code.forget()
    named = [f"--config-name={config_name}"] if config_name is not None else []
    named += [f"--config-dir={config_dir}"] if config_dir is not None else []
    typed = [normalize(item) for item in user_code.load(given)]
    return command_line.parse(with_overrides_of_extended_run([*named, *typed]))


def _texts(overrides: object) -> list[str]:
    """Return the overrides, which may come from a generator, as a list; the error does not quote them, since it may hold secrets."""
    got = f"a value of type {type(overrides).__name__}"
    if isinstance(overrides, Iterable) and not isinstance(overrides, str):
        given = list(overrides)
        others = [type(item).__name__ for item in given if not isinstance(item, str)]
        if not others:
            return given
        got = f"a value of type {others[0]} in it"
    raise TypeError(f"overrides: got {got}, expected a list of texts such as ['optimizer.lr=1e-4']")


@contextmanager
def masked_errors() -> Iterator[None]:
    """Hide secrets in the text of a ConfigError, which a notebook would store."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(shown_problems(error)) from None
