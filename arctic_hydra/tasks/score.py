"""`task=score`: computes and stores the scores of the trainer's frozen model for every document, so that training needs no such model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arctic_hydra import distributed
from arctic_hydra.assembly import resuming, run_data, run_model, run_tools, startup
from arctic_hydra.config import Run
from arctic_hydra.report.header import print_header
from arctic_hydra.run_directory import FINISHED, STOPPED
from arctic_hydra.stopping import StopRequest
from arctic_hydra.trainer.scoring.scored_loader import ScoredLoader


def execute(run: Run, run_dir: Path, stop: StopRequest) -> dict[str, Any]:
    """Compute the scores that are missing; return the directories of all scores. Collective."""
    trainer = run.trainer
    trainer.store_scores()
    with startup.report_exceptions(run, run_dir):
        startup.start_process(run, run_dir)
        with trainer.event("init", run_dir=run_dir):
            data = run_data.build_data(run, run_dir.parent)
            model = run_model.build_model(run, data)
            state = resuming.training_state(run, run_dir, data, model)
            print_header(run, run_dir, data, model)
            run_tools.set_up(run, run_tools.toolbox(run, run_dir, data, model, state, stop, run_tools.Outputs()))
        tools = trainer.tools
    distributed.stop()
    loaders = [loader for loader in (tools.loader, tools.eval_loader) if isinstance(loader, ScoredLoader)]
    if not loaders:
        return {"status": STOPPED, "scores": [], "stop_reason": stop.reason or "another rank was asked to stop"}
    paths = [str(path) for loader in loaders for path in loader.paths]
    return {"status": FINISHED, "scores": list(dict.fromkeys(paths))}
