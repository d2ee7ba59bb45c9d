"""Builds and executes a training run from a checked `Run`; `task=evaluate` reuses `build_data` and `build_model`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from arctic_hydra import assemble, config, determinism, display, distributed, engine, without_garbage_collection
from arctic_hydra.assemble import Data, Model
from arctic_hydra.checkpoint.base import TrainingState, check_space
from arctic_hydra.checkpoint.initial_weights import Weights
from arctic_hydra.errors import ConfigError
from arctic_hydra.report.facts import model_facts
from arctic_hydra.report.header import print_header
from arctic_hydra.report.memory_lines import Prediction, describe, process_gib
from arctic_hydra.report.outcome import outcome
from arctic_hydra.run_directory import FAILED, relative
from arctic_hydra.scheduler.extended import continue_schedule, warmup_steps
from arctic_hydra.stopping import StopRequest
from arctic_hydra.trainer.base import Trainer


def train(run: config.Run, run_dir: Path, stop: StopRequest) -> dict[str, Any]:
    """Train `run` in `run_dir`; return its status, counters and objective. Collective."""
    with assemble.report_exceptions(run, run_dir):
        trainer, resumed_from, memory = build(run, run_dir, stop)
        try:
            trainer.train()
            if trainer.world.is_main:
                display.current().say(memory.measured_line(trainer.device))
        except Exception as error:
            trainer.save_after(error)
            assemble.finish_trackers(trainer, FAILED)
            raise
    with display.phase("finish", transient=True):
        result = outcome(run, trainer, trainer.tools.loader, resumed_from)
        assemble.finish_trackers(trainer, result["status"])
        distributed.stop()
    return result


def build(run: config.Run, run_dir: Path, stop: StopRequest) -> tuple[Trainer, Path | None, Prediction]:
    """Build everything that training needs; return the trainer, the checkpoint it resumed from, if any, and its memory."""
    with without_garbage_collection():
        assemble.start_process(run, run_dir)
    with run.trainer.event("init", run_dir=run_dir):
        data = build_data(run, run_dir)
        assemble.record_horizon(run, run_dir, data)
        with without_garbage_collection():
            engine.import_deepspeed()
        held = process_gib()
        model = build_model(run, data)
        memory = Prediction()
        if data.world.is_main:
            with display.phase("memory", "estimate", transient=True):
                memory = describe(run, data.loader.summary()["supervised_share"], data.tokenizer)
            memory = replace(memory, held_gib=held)
        determinism.seed_everything(run.seed + data.world.rank)  # ranks draw different dropout
        state = assemble.training_state(run, run_dir, data, model)
        resumed_from = resume(run, state)
        check_space(
            run.checkpoint.values(), model.facts.parameters, model.facts.trainable, run.model.torch_dtype.itemsize
        )
        outputs = assemble.open_outputs(run, run_dir, data, model)
        print_header(run, run_dir, data, model, memory.lines, resumed_from)
        assemble.set_up(run, assemble.toolbox(run, run_dir, data, model, state, stop, outputs))
    return run.trainer, resumed_from, memory


def build_data(run: config.Run, run_dir: Path) -> Data:
    """Join the other ranks, then build the tokenizer and this rank's batches, which determine the training horizon."""
    world = assemble.join_ranks(run)
    with without_garbage_collection(), run.trainer.event("create_tokenizer") as facts:
        tokenizer = facts["tokenizer"] = run.trainer.create_tokenizer(run.tokenizer)
    data = assemble.create_loaders(run, run_dir, tokenizer, world)
    run.trainer.plan(data.loader, run.scheduler.warmup)
    return data


def build_model(run: config.Run, data: Data, weights: Weights | None = None) -> Model:
    """Build the model, optimizer and schedule and pass them to DeepSpeed; `weights` replace the model's initial weights."""
    trainer = run.trainer
    with without_garbage_collection(), trainer.event("create_config") as about:  # the first that imports models
        model_config = about["config"] = trainer.create_config(run.model)
    engine_config = assemble.engine_config(run, model_config, data.world.size)
    with display.phase("weights", "random, as the config describes the model") as loading:
        with trainer.event("create_model", config=model_config) as about, engine.model_init(engine_config):
            start = assemble.starting_weights(run)
            if origin := (weights or start):
                loading.about = f"from {relative(origin.path)}"
            elif run.model.weights_source is not None:
                loading.about = f"from {run.model.weights_source[0]}"
            about["model"] = assemble.create_model(run, model_config, data.tokenizer, start, weights)
        model = about["model"]
        facts = model_facts(model)
    ranks = f"{data.world.size} rank{'s' if data.world.size > 1 else ''} ({data.world.device.type})"
    with display.phase("engine", f"ZeRO-{run.deepspeed.stage} on {ranks}"):
        model = run.model.parallelize(model)
        with trainer.event("create_optimizer", model=model) as about:
            about["optimizer"] = trainer.create_optimizer(run.optimizer, model)
            run.model.post_optimizer_build(about["optimizer"], model)
        optimizer = about["optimizer"]
        with trainer.event("create_scheduler", optimizer=optimizer) as about:
            about["scheduler"] = trainer.create_scheduler(run.scheduler, optimizer, trainer.training_horizon)
        built = trainer.create_engine(model, optimizer, engine_config)
    return Model(
        engine=built,
        engine_config=engine_config,
        scheduler=about["scheduler"],
        facts=facts,
        start=start,
        weights=weights,
    )


def resume(run: config.Run, state: TrainingState) -> Path | None:
    """Bind the checkpoint engines to the state and restore it from the newest valid checkpoint; return its path, if any.

    A run without a checkpoint of its own continues that of the run that it extends. Collective.
    """
    peaks = list(getattr(state.scheduler, "base_lrs", []))
    for checkpoint in run.checkpoint.values():
        checkpoint.bind(state)
    loaded = [checkpoint.load() for checkpoint in run.checkpoint.values() if checkpoint.auto_resume]
    if state.extended_at:
        _continue_schedule(run, state, peaks)
    if not any(loaded) and state.world.is_main:
        for path in state.logs:
            path.unlink(missing_ok=True)  # left by a start that ended before its first checkpoint
    distributed.barrier()
    return next((path for path in loaded if path), None)


def _continue_schedule(run: config.Run, state: TrainingState, peaks: list[float]) -> None:
    """Set the learning rates of a run that extends another one; raises ConfigError if it has no further steps."""
    from arctic_hydra.checkpoint.rank_state import set_learning_rates

    start, horizon, how = state.extended_at, run.trainer.training_horizon, run.extend_schedule
    if horizon <= start:
        raise ConfigError(
            f"extend: {run.extend} has {start} steps, and this run {horizon} in all; raise trainer.epochs or trainer.train_iters"
        )
    run.trainer.set_warmup(warmup_steps(run.scheduler, how, start, horizon))
    rates = continue_schedule(state.scheduler, run.scheduler, how, peaks, start, horizon)
    set_learning_rates(state.scheduler.optimizer, rates)
