"""`task=evaluate`: evaluates one checkpoint, with the same metrics as during training, and the exact match of generated answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra import distributed
from arctic_hydra.assembly import base_weights, resuming, run_data, run_model, run_tools, startup
from arctic_hydra.callback.base import TRAINER_STATE
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.checkpoint.rank_state import state_in
from arctic_hydra.config import Run
from arctic_hydra.report.header import print_header
from arctic_hydra.run_directory import FINISHED
from arctic_hydra.stopping import StopRequest
from arctic_hydra.tasks import generated_answers


def execute(run: Run, run_dir: Path, stop: StopRequest) -> dict[str, Any]:
    """Evaluate the checkpoint that `from_checkpoint` names; return its path, step and metrics. Collective."""
    trainer = run.trainer
    with startup.report_exceptions(run, run_dir):
        distributed.start(distributed.World.from_env(), trainer.collective_timeout_seconds)
        found = initial_weights.find_checkpoint(checkpoint_root(run, run_dir), run.from_checkpoint)
        weights = base_weights.averaged(run, found, "evaluate")
        startup.start_process(run, run_dir)
        with trainer.event("init", run_dir=run_dir):
            data = run_data.build_data(run, run_dir.parent)
            questions = []
            if run.exact_match.pattern is not None:  # before the model is loaded
                assert data.eval_loader is not None, "checked for every config"
                questions = generated_answers.read_questions(run, data.tokenizer, data.eval_loader)
            model = run_model.build_model(run, data, weights)
            state = resuming.training_state(run, run_dir, data, model)
            state.progress.global_step = weights.step or 0
            state.callbacks[TRAINER_STATE].load_state_dict(state_in(weights.path, TRAINER_STATE, data.world))
            print_header(run, run_dir, data, model)
            run_tools.set_up(run, run_tools.toolbox(run, run_dir, data, model, state, stop, run_tools.Outputs()))
        metrics = dict(trainer.evaluate())
        if questions:
            metrics |= generated_answers.score(run, run_dir, questions)
    distributed.stop()
    return {"status": FINISHED, "checkpoint": str(weights.path), **metrics}


def checkpoint_root(run: Run, run_dir: Path) -> Path:
    """Return the checkpoint directory of the run that `run_dir` belongs to."""
    engine, trained_in = run.checkpoint.get("deepspeed"), run_dir.parent
    return (engine.directory_of(trained_in) if engine else trained_in) / "checkpoints"
