"""`hydra/sweeper=optuna`: a search over a space written in Hydra's sweep syntax, with Optuna's samplers and pruners."""

# No `from __future__ import annotations`, see local.py.

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import DictConfig


@dataclass
class OptunaSweeperConf:
    """Options of `hydra/sweeper=optuna`."""

    _target_: str = "hydra_plugins.arctic_hydra.optuna.OptunaSweeper"
    n_trials: int | None = 20
    """Jobs in all, those of earlier starts of the same search included; `sampler=grid` takes every combination."""
    n_jobs: int | None = None
    """Jobs asked for at a time; the launcher's slots when null."""
    sampler: str = "tpe"
    """tpe, random, grid or cmaes."""
    seed: int = 0
    """Seed of the sampler; the same search with the same seed and `n_jobs` asks for the same values."""
    pruner: str = "none"
    """none, median, percentile, hyperband or successive_halving: ends jobs whose evaluations fall behind."""
    pruner_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's pruner, such as {n_startup_trials:3}."""
    params: dict[str, str] | None = None
    """The space, for config files: key to sweep syntax; the command line's comes after and wins."""


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="arctic_hydra")


class OptunaSweeper(Sweeper):
    """Asks an Optuna study for values, has the launcher run the jobs, and tells the study what they came to."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: Any, config: DictConfig) -> None:
        """Take the controller, which `__main__` gives Hydra as the task function, and make the launcher."""
        from arctic_hydra.sweep.controller import SweepController

        if not isinstance(task_function, SweepController):
            raise HydraException("hydra/sweeper=optuna searches over jobs of arctic_hydra only")
        self.hydra_context, self.config, self.controller = hydra_context, config, task_function
        given: Any = {"config": config, "hydra_context": hydra_context, "task_function": task_function}
        # Ours all have `run`; no isinstance, since Hydra executes the modules of plugins again when it looks for them.
        launcher: Any = Plugins.instance().instantiate_launcher(**given)
        if not hasattr(launcher, "run"):
            raise HydraException(
                f"hydra/sweeper=optuna works with arctic_hydra's launchers, not with {type(launcher).__name__}"
            )
        self.own_launcher: Any = launcher

    def sweep(self, arguments: list[str]) -> Any:
        """Search until there are `n_trials`."""
        from hydra_plugins.arctic_hydra.search import Search

        return Search(self.controller, self.own_launcher, arguments, **self.settings).run()
