"""`hydra/launcher=local`: jobs in all slots of the sweep."""

from __future__ import annotations

from hydra_plugins.arctic_hydra.local import LocalLauncher

from arctic_hydra.sweep.controller import SweepController
from arctic_hydra.sweep.pool import Slots
from tests.sweep.sweeps import sweep_of


def test_jobs_run_in_all_slots_and_print_to_their_logs(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(SweepController, "run", lambda self, *given, **named: calls.append((*given, named)))
    launcher = LocalLauncher(2)
    controller = SweepController(sweep_of(tmp_path), None, {}, Slots(2, [["0"], ["1"]]))
    launcher.setup(hydra_context=None, task_function=controller, config=None)
    launcher.run([])
    assert calls == [([], Slots(2, [["0"], ["1"]]), {"to_terminal": False, "forked": True})]
