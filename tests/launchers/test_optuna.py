"""`hydra/sweeper=optuna`: which launchers it works with."""

from __future__ import annotations

import pytest
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra_plugins.arctic_hydra.optuna import OptunaSweeper

from arctic_hydra.sweep.controller import SweepController
from arctic_hydra.sweep.pool import Slots
from tests.sweep.sweeps import sweep_of


def test_a_launcher_of_another_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Plugins.instance(), "instantiate_launcher", lambda **given: object())
    controller = SweepController(sweep_of(tmp_path), None, {}, Slots(1))
    with pytest.raises(HydraException, match="works with arctic_hydra's launchers, not with object"):
        OptunaSweeper().setup(hydra_context=None, task_function=controller, config=None)
