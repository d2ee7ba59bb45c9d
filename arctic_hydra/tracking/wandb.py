"""Tracking with Weights & Biases; without a network, with `WANDB_MODE=offline`, into files that `wandb sync` uploads."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arctic_hydra.component import component
from arctic_hydra.tracking.sender import Point
from arctic_hydra.tracking.store_run import StoreRun, StoreTracker

_INIT_SECONDS = 60.0
_WORKSPACE_SETTINGS = ("wandb/settings", ".wandb/settings")
"""Files that wandb reads in the working directory."""


@component(group="tracking", name="wandb")
class WandbTracker(StoreTracker):
    """Logs the resolved config and the metrics to one run of Weights & Biases; a resumed run continues it, under the same id."""

    enable: bool = True
    """Send anything; false keeps the other settings and sends nothing."""
    entity: str | None = None
    """User or team; your default one when unset."""
    project: str = "arctic-training"
    """Project of the run; created if it does not exist."""
    name: str | None = None
    """Name of the run; `<name>/<id>` of its directory when unset."""

    def validate(self) -> None:
        if not self.project.strip():
            raise ValueError(f"project: got {self.project!r}, expected a name")

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if wandb is not installed, or would read settings from the working directory, which is not trusted."""
        if not self.enable:
            return
        if found := [path for path in _WORKSPACE_SETTINGS if Path(path).exists()]:
            yield (
                f"enable: wandb would take the server that gets the API key from {Path(found[0]).absolute()}; set WANDB_* variables or "
                "~/.config/wandb/settings instead, and delete this file"
            )
        if importlib.util.find_spec("wandb") is None:
            yield "enable: tracking=[wandb] needs wandb, which is not installed; pip install wandb, or leave wandb out"

    def store_run(self, run_dir: Path, name: str, config: dict[str, Any]) -> StoreRun | None:
        """Return the run of a run directory; None if the tracker is not enabled."""
        return WandbRun(self, run_dir, self.name or name, config) if self.enable else None


class WandbRun(StoreRun):
    """The run of one run directory in Weights & Biases."""

    def __init__(self, tracker: WandbTracker, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        super().__init__("wandb", run_dir, name, config)
        self._tracker = tracker
        self._run: Any = None

    def open(self) -> None:
        """Create the run, or continue the one with the id that the run directory holds."""
        os.environ["WANDB_SILENT"] = "true"  # without a key it would ask on the terminal
        import wandb

        self.begin(self.run_id or uuid.uuid4().hex[:8])
        self.folder.mkdir(exist_ok=True)
        # Without its own copies of code, command line, output and machine statistics, which it would take from this process.
        quiet: dict[str, Any] = {"silent": True, "console": "off", "save_code": False, "disable_git": True}
        settings = wandb.Settings(**quiet, x_disable_stats=True, x_disable_meta=True, init_timeout=_INIT_SECONDS)
        self._run = wandb.init(
            entity=self._tracker.entity,
            project=self._tracker.project,
            name=self.name,
            id=self.run_id,
            resume="allow",
            dir=str(self.folder),
            config=self.config,
            settings=settings,
        )

    def send(self, points: list[Point]) -> None:
        """Log the points and samples that were not logged yet."""
        new = self.unsent(points)
        for point in new:
            self._run.log(point.metrics, step=point.step)
        self.sent(new)
        self._send_samples()

    def _send_samples(self) -> None:
        import wandb

        for step, samples in self.unsent_samples().items():
            rows = [[sample["prompt"], sample["completion"]] for sample in samples]
            table = wandb.Table(columns=["prompt", "completion"], data=rows)
            self._run.log({"samples": table}, step=max(step, self._run.step))
            self.sent_samples(step)

    def close(self, status: str) -> None:
        """End the run, and the process that sends for it."""
        import wandb

        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status == "failed"))
        wandb.teardown()
        self.ended(status)
