"""Builds and executes a training run from a checked `Run`, from top to bottom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from arctic_hydra import determinism, display, distributed, engine, without_garbage_collection
from arctic_hydra.assembly import resuming, run_data, run_model, run_tools, startup
from arctic_hydra.checkpoint.base import check_space
from arctic_hydra.config import Run
from arctic_hydra.report.header import print_header
from arctic_hydra.report.memory_lines import Prediction, describe, process_gib
from arctic_hydra.report.outcome import outcome
from arctic_hydra.run_directory import FAILED, RunDirectory
from arctic_hydra.stopping import StopRequest
from arctic_hydra.trainer.base import Trainer


def train(run: Run, run_dir: Path, stop: StopRequest) -> dict[str, Any]:
    """Train `run` in `run_dir`; return its status, counters and objective. Collective."""
    with startup.report_exceptions(run, run_dir):
        trainer, resumed_from, memory = build(run, run_dir, stop)
        try:
            trainer.train()
            if trainer.world.is_main:
                display.current().say(memory.measured_line(trainer.device))
        except Exception as error:
            trainer.save_after(error)
            run_tools.finish_trackers(trainer, FAILED)
            raise
    with display.phase("finish", transient=True):
        result = outcome(run, trainer, trainer.tools.loader, resumed_from)
        run_tools.finish_trackers(trainer, result["status"])
        distributed.stop()
    return result


def build(run: Run, run_dir: Path, stop: StopRequest) -> tuple[Trainer, Path | None, Prediction]:
    """Build everything that training needs; return the trainer, the checkpoint it resumed from, if any, and its memory."""
    with without_garbage_collection():
        startup.start_process(run, run_dir)
    with run.trainer.event("init", run_dir=run_dir):
        data = run_data.build_data(run, run_dir)
        run_data.record_horizon(run, run_dir, data)
        with without_garbage_collection():
            engine.import_deepspeed()
        held = process_gib()
        resumes = any(item.auto_resume for item in run.checkpoint.values())
        resumes = resumes and (run.extend is not None or RunDirectory(run_dir).has_checkpoints())
        model = run_model.build_model(run, data, resumes=resumes)
        memory = Prediction()
        if data.world.is_main:
            with display.phase("memory", "estimate", transient=True):
                memory = describe(run, data.loader.summary()["supervised_share"], data.tokenizer)
            memory = replace(memory, held_gib=held)
        determinism.seed_everything(run.seed + data.world.rank)  # ranks draw different dropout
        state = resuming.training_state(run, run_dir, data, model)
        resumed_from = resuming.resume(run, state)
        check_space(
            run.checkpoint.values(), model.facts.parameters, model.facts.trainable, run.model.torch_dtype.itemsize
        )
        outputs = run_tools.open_outputs(run, run_dir, data, model)
        print_header(run, run_dir, data, model, memory.lines, resumed_from)
        run_tools.set_up(run, run_tools.toolbox(run, run_dir, data, model, state, stop, outputs))
    return run.trainer, resumed_from, memory
