"""`hydra/launcher=basic`: runs jobs one after another on this machine, with their output on the terminal.

Hydra's own basic launcher would compose each job again from the current config files; ours runs the jobs that were
composed before the first one started.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra_plugins.arctic_hydra.sweep_launcher import SweepLauncher

if TYPE_CHECKING:
    from arctic_hydra.launch.job import Job
    from arctic_hydra.sweep.directory import SweepJob


class OneByOneLauncher(SweepLauncher):
    """Runs the jobs in a single slot; `multirun` uses it instead of Hydra's basic launcher."""

    def run(self, pairs: Sequence[tuple[SweepJob, Job]]) -> None:
        """Run the jobs and wait for them."""
        from arctic_hydra.sweep.pool import Slots

        self.controller.run(pairs, Slots(1, self.controller.slots.gpus[:1]), to_terminal=True)
