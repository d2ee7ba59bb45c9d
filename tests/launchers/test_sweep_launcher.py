"""What the launchers share: they take jobs of arctic_hydra only, and answer with objectives."""

from __future__ import annotations

import pytest
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra_plugins.arctic_hydra.basic import OneByOneLauncher
from hydra_plugins.arctic_hydra.local import LocalLauncher
from hydra_plugins.arctic_hydra.optuna import OptunaSweeper

from arctic_hydra.sweep.controller import SweepController
from arctic_hydra.sweep.pool import Slots
from tests.sweep.sweeps import sweep_of


@pytest.mark.parametrize("plugin", [OneByOneLauncher(), LocalLauncher(None), OptunaSweeper()])
def test_a_task_function_of_another_program_is_refused(plugin):
    with pytest.raises(HydraException, match="jobs of arctic_hydra only"):
        plugin.setup(hydra_context=None, task_function=print, config=None)


@pytest.mark.parametrize(("kind", "status"), [("grid", JobStatus.COMPLETED), ("search", JobStatus.FAILED)])
def test_a_job_without_an_objective_fails_in_a_search_and_not_in_a_grid(kind, status, tmp_path):
    sweep = sweep_of(tmp_path, ["seed=1"], kind=kind)
    launcher = OneByOneLauncher()
    launcher.setup(hydra_context=None, task_function=SweepController(sweep, None, {}, Slots(1)), config=None)
    assert launcher._answer(sweep.jobs[0], ["seed=1"]).status == status
