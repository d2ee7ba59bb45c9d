"""`task=evaluate`: the evaluation of one checkpoint, the same numbers as while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra import distributed, runner
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.config import Run
from arctic_hydra.run_directory import FINISHED
from arctic_hydra.stopping import StopRequest


def execute(run: Run, run_dir: Path, stop: StopRequest) -> dict[str, Any]:
    """Evaluate the checkpoint that `from_checkpoint` names; return its place, step and metrics. Every rank calls it."""
    with runner.telling_callbacks(run, run_dir):
        distributed.start(distributed.World.from_env(), run.trainer.collective_timeout_seconds)
        weights = initial_weights.find_checkpoint(checkpoint_root(run, run_dir), run.from_checkpoint)
        trainer, _ = runner.build(run, run_dir, stop, weights)
        trainer.progress.global_step = weights.step or 0
        metrics = trainer.evaluate()
        trainer.tools.display.close()
    distributed.stop()
    return {"status": FINISHED, "checkpoint": str(weights.path), **metrics}


def checkpoint_root(run: Run, run_dir: Path) -> Path:
    """Return where the run that `run_dir` belongs to keeps its checkpoints."""
    engine = run.checkpoint.get("deepspeed")
    return Path(getattr(engine, "output_dir", None) or run_dir.parent) / "checkpoints"
