"""The tasks that ranks perform: training, scoring data, and evaluation or export of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra import without_garbage_collection
from arctic_hydra.config import Run, Task
from arctic_hydra.stopping import StopRequest


def run_task(run: Run, run_dir: Path, stop: StopRequest) -> dict[str, Any]:
    """Perform `run.task` in `run_dir`, the folder that contains `run.json`; return the content of `result.json`."""
    if run.task is Task.export:
        from arctic_hydra.tasks import export

        return export.execute(run, run_dir)
    if run.task is Task.score:
        from arctic_hydra.tasks import score

        return score.execute(run, run_dir, stop)
    if run.task is Task.evaluate:
        from arctic_hydra.tasks import evaluate

        return evaluate.execute(run, run_dir, stop)
    with without_garbage_collection():
        from arctic_hydra import runner  # imports torch, which takes seconds
    return runner.train(run, run_dir, stop)
