"""What `hydra/launcher=basic` is here: jobs one after another on this machine, their output on the terminal.

Hydra's own basic launcher composes each job again from the files as they are by then; these jobs were composed before the
first of them started.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra_plugins.arctic_hydra.sweep_launcher import SweepLauncher

if TYPE_CHECKING:
    from arctic_hydra.launch.job import Job
    from arctic_hydra.sweep.directory import SweepJob


class OneByOneLauncher(SweepLauncher):
    """Runs the jobs in a single slot; `multirun` puts it in the place of Hydra's basic launcher."""

    def run(self, pairs: Sequence[tuple[SweepJob, Job]]) -> None:
        """Run the jobs and wait for them."""
        from arctic_hydra.sweep.pool import Slots

        self.controller.run(pairs, Slots(1, self.controller.slots.gpus[:1]), to_terminal=True)
