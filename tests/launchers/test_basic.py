"""`hydra/launcher=basic`: one job after another."""

from __future__ import annotations

from hydra_plugins.arctic_hydra.basic import OneByOneLauncher

from arctic_hydra.sweep.controller import SweepController
from arctic_hydra.sweep.pool import Slots
from tests.sweep.sweeps import sweep_of


def test_jobs_run_one_at_a_time_and_print_to_the_terminal(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(SweepController, "run", lambda self, *given, **named: calls.append((*given, named)))
    launcher = OneByOneLauncher()
    controller = SweepController(sweep_of(tmp_path), None, {}, Slots(2, [["0"], ["1"]]))
    launcher.setup(hydra_context=None, task_function=controller, config=None)
    launcher.run([])
    assert calls == [([], Slots(1, [["0"]]), {"to_terminal": True})]
