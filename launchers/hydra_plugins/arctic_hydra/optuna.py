"""`hydra/sweeper=optuna`: searches a space in Hydra's sweep syntax, with Optuna's samplers and pruners."""

# No `from __future__ import annotations`, see local.py.

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import DictConfig

from arctic_hydra.component import choice
from arctic_hydra.human_numbers import bounded


@dataclass
class OptunaSweeperConf:
    """Searches a space that is written in Hydra's sweep syntax, with Optuna."""

    _target_: str = "hydra_plugins.arctic_hydra.optuna.OptunaSweeper"
    n_trials: int | None = bounded(20, minimum=1, maximum=1_000_000)
    """Total number of jobs, including earlier starts of the same search; `sampler=grid` runs every combination."""
    n_jobs: int | None = bounded(None, minimum=1, maximum=1_000_000)
    """Jobs per batch; the launcher's slots when null."""
    sampler: str = choice("tpe", ("tpe", "random", "grid", "cmaes"))
    """tpe, random, grid or cmaes."""
    seed: int = bounded(0, minimum=0, maximum=2**64 - 1)
    """Seed of the sampler; a search with the same seed and `n_jobs` proposes the same values."""
    pruner: str = choice("none", ("none", "median", "percentile", "hyperband", "successive_halving"))
    """none, median, percentile, hyperband or successive_halving; stops jobs with poor intermediate evaluations."""
    pruner_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's pruner, such as {n_startup_trials:3}."""
    params: dict[str, str] | None = field(default_factory=dict)
    """Search space for config files: keys mapped to sweep syntax; the command line has precedence."""


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="arctic_hydra")


class OptunaSweeper(Sweeper):
    """Asks an Optuna study for values, runs the jobs with the launcher, and reports the results to the study."""

    own_launcher: Any
    """The launcher of the sweep, set before `setup`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: Any, config: DictConfig) -> None:
        """Store the controller, which the command line passes as the task function, and set up the launcher."""
        from arctic_hydra.sweep.controller import SweepController

        if not isinstance(task_function, SweepController):
            raise HydraException("hydra/sweeper=optuna searches over jobs of arctic_hydra only")
        self.controller = task_function
        self.own_launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search until there are `n_trials` trials."""
        from hydra_plugins.arctic_hydra._search import Search

        return Search(self.controller, self.own_launcher, arguments, **self.settings).run()
