"""The base of the launchers: registers jobs that were composed once, and returns results that sweepers understand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from arctic_hydra.launch.job import Job
    from arctic_hydra.sweep.controller import SweepController
    from arctic_hydra.sweep.directory import SweepJob


class SweepLauncher(Launcher):
    """Base class of our launchers; `run` runs the registered jobs until they end, or submits them."""

    controller: SweepController

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the controller, which the command line passes to Hydra as the task function."""
        from arctic_hydra.sweep.controller import SweepController

        if not isinstance(task_function, SweepController):
            raise HydraException(f"{type(self).__name__} launches jobs of arctic_hydra only")
        self.controller = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Register the jobs, run them, and return their objectives in order."""
        pairs = self.controller.register(list(enumerate(job_overrides, start=initial_job_idx)))
        self.run(pairs)
        return [
            self._answer(entry, list(overrides)) for (entry, _), overrides in zip(pairs, job_overrides, strict=True)
        ]

    @abstractmethod
    def run(self, pairs: Sequence[tuple[SweepJob, Job]]) -> None:
        """Run the jobs; their results are read from their files."""

    def _answer(self, entry: SweepJob, overrides: list[str]) -> JobReturn:
        # A grid's sweeper would stop at the first failed job, so only a search gets failures.
        value: Any = self.controller.value(entry)
        status = JobStatus.COMPLETED if value is not None or self.controller.sweep.kind == "grid" else JobStatus.FAILED
        if status is JobStatus.FAILED:
            value = RuntimeError(f"job {entry.number} has no objective")
        return JobReturn(overrides=overrides, status=status, _return_value=value)
