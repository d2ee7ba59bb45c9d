"""Memory profiler: what the memory of a GPU is used for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component
from arctic_hydra.distributed import count_gpus
from arctic_hydra.files.ownership import unwritable
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.run_directory import below

if TYPE_CHECKING:
    from arctic_hydra.trainer.base import Trainer

log = logging.getLogger(__name__)


class MemoryProfilerMode(Enum):
    """What is recorded."""

    step = "step"
    e2e = "e2e"


@component(group="callback", name="memory_profiler")
class MemoryProfiler(Callback):
    """Records allocations of CUDA memory, as a snapshot per rank that https://pytorch.org/memory_viz shows.

    The snapshot `<rank>.pickle` is written when training ends, also if it ends with an error such as running out of memory.
    Needs a CUDA device.
    """

    mode: MemoryProfilerMode = MemoryProfilerMode.step
    """step records training; e2e also how the model is built."""
    output_dir: str | None = None
    """Directory of the snapshots, with a folder per run; `memory_profile` in the run directory when unset."""
    max_entries: HumanInt = integer(100_000, minimum=1)
    """Maximum number of allocations and releases to keep; the oldest are dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._records = False

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if there is no CUDA device, or if the snapshots cannot be written."""
        yield from unwritable("output_dir", self.output_dir)
        if count_gpus() == 0:
            yield "mode: records the memory of a CUDA GPU, but this machine has none; leave memory_profiler out"

    def on_init_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Start recording with mode=e2e."""
        if self.mode is MemoryProfilerMode.e2e:
            self._start()

    def on_train_start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Start recording with mode=step."""
        if self.mode is MemoryProfilerMode.step:
            self._start()

    def on_train_end(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Write the snapshot."""
        self._write(trainer.tools.run_dir, trainer.world.rank)

    def on_exception(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Write the snapshot of what led to the error."""
        self._write(facts["run_dir"], trainer.world.rank)

    def _start(self) -> None:
        import torch

        torch.cuda.memory._record_memory_history(max_entries=self.max_entries)
        self._records = True

    def _write(self, run_dir: Path, rank: int) -> None:
        import torch

        if not self._records:
            return
        self._records = False
        folder = below(Path(self.output_dir), run_dir) if self.output_dir else run_dir / "memory_profile"
        path = folder / f"{rank}.pickle"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(path))
        except OSError as error:  # no reason to end the run
            log.warning("memory_profiler: cannot write the snapshot %s: %s", path, error)
            return
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
        log.info("wrote the memory snapshot %s", path)
