"""`hydra/sweeper=optuna`: which jobs it searches over."""

from __future__ import annotations

import pytest
from hydra.errors import HydraException
from hydra_plugins.arctic_hydra.optuna import OptunaSweeper


def test_jobs_of_another_program_are_refused():
    with pytest.raises(HydraException, match="searches over jobs of arctic_hydra only"):
        OptunaSweeper().setup(hydra_context=None, task_function=print, config=None)
