"""Profiler: where the time of some steps goes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component
from arctic_hydra.files.ownership import unwritable
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.run_directory import below

if TYPE_CHECKING:
    from arctic_hydra.trainer.base import Trainer

log = logging.getLogger(__name__)


@component(group="callback", name="profiler")
class Profiler(Callback):
    """Records some steps with torch.profiler, as a trace that Perfetto (https://ui.perfetto.dev) and chrome://tracing show.

    Steps are counted from the start of this process, so that a resumed run records some, too. Recording slows these steps down.
    """

    skip_steps: HumanInt = integer(5, minimum=0)
    """Steps before the first that is recorded: the first ones compile, allocate and fill caches."""
    steps: HumanInt = integer(3, minimum=1, maximum=1000)
    """Steps to record."""
    all_ranks: bool = False
    """Record every rank instead of rank 0 only."""
    with_stack: bool = False
    """Also record the Python lines that called each operation."""
    profile_memory: bool = False
    """Also record allocations of memory."""
    output_dir: str | None = None
    """Directory of the traces, with a folder per run; `profile` in the run directory when unset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._seen = 0
        self._profile: Any = None

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if the traces cannot be written."""
        yield from unwritable("output_dir", self.output_dir)

    def on_step_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Start recording at the first step to record, and mark each step in the trace."""
        self._seen += 1
        if self._seen == self.skip_steps + 1 and (self.all_ranks or trainer.world.is_main):
            self._start(trainer.global_step + 1)
        if self._profile is not None:
            from torch.profiler import record_function

            self._mark = record_function(f"step {trainer.global_step + 1}")
            self._mark.__enter__()

    def on_step_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Write the trace after the last step to record."""
        if self._profile is not None:
            self._mark.__exit__(None, None, None)
            if self._seen == self.skip_steps + self.steps:
                self._finish(trainer)

    def on_train_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Write the trace if training ends before; warn if there is none, as too few steps were left."""
        if self._profile is not None:
            self._finish(trainer)
        elif 0 < self._seen <= self.skip_steps and trainer.world.is_main:
            log.warning(
                "profiler: recorded nothing, as this start had %d steps and callback.profiler.skip_steps=%d; lower the latter",
                self._seen,
                self.skip_steps,
            )

    def _start(self, step: int) -> None:
        from torch.profiler import ProfilerActivity, profile, supported_activities

        wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & set(supported_activities())
        self._first = step
        self._profile = profile(activities=wanted, with_stack=self.with_stack, profile_memory=self.profile_memory)
        self._profile.start()

    def _finish(self, trainer: Trainer) -> None:
        profile, self._profile = self._profile, None
        profile.stop()
        run_dir = trainer.tools.run_dir
        folder = below(Path(self.output_dir), run_dir) if self.output_dir else run_dir / "profile"
        path = folder / f"rank-{trainer.world.rank:05d}-from-step-{self._first}.json.gz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:  # no reason to end the run
            log.warning("profiler: cannot write the trace %s: %s", path, error)
            return
        log.info("wrote the trace %s", path)
