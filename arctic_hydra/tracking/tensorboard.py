"""Tracking with TensorBoard: event files in the run directory; `tensorboard --logdir outputs` shows all runs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arctic_hydra.component import component
from arctic_hydra.files.ownership import unwritable
from arctic_hydra.tracking.sender import Point
from arctic_hydra.tracking.store_run import StoreRun, StoreTracker


@component(group="tracking", name="tensorboard")
class TensorBoardTracker(StoreTracker):
    """Writes the metrics and the resolved config as event files; a resumed run adds a file."""

    log_dir: str | None = None
    """Folder of the event files of all runs; `tracking-tensorboard/` in the run directory when unset."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if tensorboard is not installed, or if its files cannot be written."""
        yield from unwritable("log_dir", self.log_dir)
        if importlib.util.find_spec("tensorboard") is None:
            yield "log_dir: tracking=[tensorboard] needs tensorboard, which is not installed; pip install tensorboard, or leave it out"

    def store_run(self, run_dir: Path, name: str, config: dict[str, Any]) -> StoreRun:
        """Return the event files of a run directory."""
        files = EventFiles("tensorboard", run_dir, name, config)
        if self.log_dir is not None:
            files.folder = Path(self.log_dir) / name
        return files


class EventFiles(StoreRun):
    """The event files of one run directory; every start adds one."""

    in_files = True
    _writer: Any = None

    def open(self) -> None:
        """Begin a new event file, with the config if it is the first."""
        from torch.utils.tensorboard import SummaryWriter

        is_first = not self.run_id
        self.begin(self.name)
        if self._writer is not None:  # of an attempt that failed
            self._writer.close()
        self._writer = SummaryWriter(str(self.folder))
        if is_first:
            self._writer.add_text("config", f"```\n{json.dumps(self.config, indent=2)}\n```", 0)

    def send(self, points: list[Point]) -> None:
        """Write the points and samples that were not written yet, to disk."""
        new = self.unsent(points)
        for point in new:
            for name, value in point.metrics.items():
                self._writer.add_scalar(name, value, point.step, walltime=point.seconds)
        self._writer.flush()
        self.sent(new)
        for step, samples in self.unsent_samples().items():
            text = "\n\n".join(f"> {sample['prompt']}\n\n{sample['completion']}" for sample in samples)
            self._writer.add_text("samples", text, step)
            self.sent_samples(step)
        self._writer.flush()

    def close(self, status: str) -> None:
        """Close the event file."""
        self._writer.close()
        self.ended(status)
