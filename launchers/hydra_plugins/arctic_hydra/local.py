"""`hydra/launcher=local`: runs several jobs at a time on this machine, each on its own GPUs."""

# No `from __future__ import annotations`: Hydra executes plugin modules before it registers them in `sys.modules`, where
# dataclasses look up string annotations.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra_plugins.arctic_hydra.sweep_launcher import SweepLauncher

from arctic_hydra.human_numbers import bounded

if TYPE_CHECKING:
    from arctic_hydra.launch.job import Job
    from arctic_hydra.sweep.directory import SweepJob


@dataclass
class LocalLauncherConf:
    """Runs several jobs at a time on this machine, each on its own GPUs."""

    _target_: str = "hydra_plugins.arctic_hydra.local.LocalLauncher"
    slots: int | None = bounded(None, minimum=1, maximum=4096)
    """Jobs that run at the same time; null: as many as the GPUs allow (one or `ranks` each), without GPUs one per two cores."""
    forked: bool = True
    """Whether jobs of one rank are forks of a process that has imported the libraries; new interpreters if false or with GPUs."""


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="arctic_hydra")


class LocalLauncher(SweepLauncher):
    """Runs the jobs in a pool of slots."""

    def __init__(self, slots: int | None, forked: bool = True) -> None:
        self.slots = slots
        self.forked = forked

    def run(self, pairs: "Sequence[tuple[SweepJob, Job]]") -> None:
        """Run the jobs and wait for them."""
        self.controller.run(pairs, self.controller.slots, to_terminal=False, forked=self.forked)
