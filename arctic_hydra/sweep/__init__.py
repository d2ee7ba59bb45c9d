"""A sweep: the jobs of one command, in one directory that the same command finds again.

`outputs/<name>/sweeps/<id>/` holds

    sweep.json    the settings of the sweep, and its jobs: number, overrides, run directory, submission (see `directory`)
    .lock         held by the sweep process
    study.log     a search's journal (Optuna's format)
    sweep.csv, sweep.html, tracking-mlflow.json   the results

Each job is a normal run in its own directory, `outputs/<name>/<id>/`, with `run.json` written at submission. Its progress
and its result are stored there, so killing the sweep process loses nothing.

Jobs run on a backend: the module `arctic_hydra.sweep.<kind>` (`local`, `slurm`) with the functions of
`directory.Backend`. The Hydra launchers that submit live in `launchers/hydra_plugins/`.

The package is also the function of the Python API: `arctic_hydra.sweep(["optimizer.lr=1e-4,1e-3"])` runs a sweep.
"""

import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class _Sweep(ModuleType):
    """This package as the function `arctic_hydra.sweep` of the Python API, since the import of any module of it binds that name to it."""

    def __call__(
        self,
        overrides: Iterable[str],
        *,
        config_name: str | None = None,
        config_dir: str | None = None,
        progress: bool = True,
    ) -> Any:
        """Run a sweep, as `python -m arctic_hydra -m` does, and return its jobs as a `SweepResult`, see docs/python.md."""
        called: Any = importlib.import_module("arctic_hydra.api.sweep_result")
        return called.sweep(overrides, config_name=config_name, config_dir=config_dir, progress=progress)


sys.modules[__name__].__class__ = _Sweep
