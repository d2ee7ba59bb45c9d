"""`task=evaluate`: evaluates one checkpoint, with the same metrics as during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra import assemble, distributed, runner
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.config import Run
from arctic_hydra.report.header import print_header
from arctic_hydra.run_directory import FINISHED
from arctic_hydra.stopping import StopRequest


def execute(run: Run, run_dir: Path, stop: StopRequest) -> dict[str, Any]:
    """Evaluate the checkpoint that `from_checkpoint` names; return its path, step and metrics. Collective."""
    trainer = run.trainer
    with assemble.report_exceptions(run, run_dir):
        distributed.start(distributed.World.from_env(), trainer.collective_timeout_seconds)
        found = initial_weights.find_checkpoint(checkpoint_root(run, run_dir), run.from_checkpoint)
        weights = assemble.averaged(run, found, "evaluate")
        assemble.start_process(run, run_dir)
        with trainer.event("init", run_dir=run_dir):
            data = runner.build_data(run, run_dir.parent)
            model = runner.build_model(run, data, weights)
            state = assemble.training_state(run, run_dir, data, model)
            state.progress.global_step = weights.step or 0
            print_header(run, run_dir, data, model)
            assemble.set_up(run, assemble.toolbox(run, run_dir, data, model, state, stop, assemble.Outputs()))
        metrics = trainer.evaluate()
    distributed.stop()
    return {"status": FINISHED, "checkpoint": str(weights.path), **metrics}


def checkpoint_root(run: Run, run_dir: Path) -> Path:
    """Return the checkpoint directory of the run that `run_dir` belongs to."""
    engine, trained_in = run.checkpoint.get("deepspeed"), run_dir.parent
    return (engine.directory_of(trained_in) if engine else trained_in) / "checkpoints"
