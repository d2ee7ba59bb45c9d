"""The straight line: from a checked `Run` to a trained model, one build per line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arctic_hydra import assemble, config, distributed, engine, log, run_directory
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.checkpoint.base import Stream, TrainingState, check_space
from arctic_hydra.data.base import Loader
from arctic_hydra.data.load.sequence_parallel import fitted
from arctic_hydra.data.load.stop_tokens import stop_tokens
from arctic_hydra.display import Display
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError
from arctic_hydra.memory import describe
from arctic_hydra.metrics import MetricsFile
from arctic_hydra.model.layers import compile_layers
from arctic_hydra.progress import Progress
from arctic_hydra.report import header, outcome
from arctic_hydra.report.facts import model_facts
from arctic_hydra.stopping import StopRequest
from arctic_hydra.tracking.base import Tracker
from arctic_hydra.trainer.base import Trainer
from arctic_hydra.trainer.toolbox import Toolbox

logger = logging.getLogger(__name__)


def execute(run: config.Run, run_dir: Path, stop: StopRequest) -> dict[str, Any]:
    """Train as `run` says in `run_dir`; return status, counters and objective. Every rank calls it."""
    with telling_callbacks(run, run_dir):
        trainer, resumed_from = build(run, run_dir, stop)
        try:
            trainer.train()
        except Exception:
            for tracker in trainer.tools.trackers:
                tracker.finish(run_directory.FAILED)
            raise
        finally:
            trainer.tools.display.close()
    ended = outcome.outcome(run, trainer, trainer.tools.loader, resumed_from)
    for tracker in trainer.tools.trackers:
        tracker.finish(ended["status"])
    distributed.stop()
    return ended


@contextmanager
def telling_callbacks(run: config.Run, run_dir: Path) -> Iterator[None]:
    """Let the callbacks hear an error that ends the run in here; one of their own then only goes to the log."""
    run.trainer.listen(list(run.callback.values()), World.from_env())
    try:
        yield
    except Exception as error:
        try:
            run.trainer.notify("exception", run.trainer, {"error": error, "run_dir": run_dir})
        except Exception:
            logger.exception("a callback failed in on_exception")
        raise


def build(
    run: config.Run, run_dir: Path, stop: StopRequest, weights: initial_weights.Weights | None = None
) -> tuple[Trainer, Path | None]:
    """Build the run; return its trainer and the checkpoint that it resumed from.

    With `weights` the model is for looking at only: nothing is resumed, and neither metrics nor trackers are opened.
    """
    trainer, world, trains = run.trainer, World.from_env(), weights is None
    log.start(run_dir, world, run.log.level, to_file=run.log.writes(world), to_terminal=run.log.prints(world))
    if problems := run.environment_problems():
        raise ConfigError(problems)
    log.quiet_progress_bars()
    run.attach(trainer)

    with trainer.event("init"):
        distributed.start(world, trainer.collective_timeout_seconds)
        distributed.start_sequence_groups(world, trainer.sequence_parallel_size, trainer.collective_timeout_seconds)
        device = world.device
        assemble.seed_everything(run.seed)
        with trainer.event("create_tokenizer"):
            tokenizer = run.tokenizer.create_tokenizer()
        geometry = assemble.geometry(run, world.data_parallel(trainer.sequence_parallel_size))
        with trainer.event("create_loader"):
            dealt, eval_dealt = run.data.build(tokenizer, geometry)
        loader, eval_loader = fitted(dealt, run.pack_tokens), eval_dealt and fitted(eval_dealt, run.pack_tokens)
        horizon = trainer.plan(loader, run.scheduler.warmup)
        if trains and world.is_main:
            run_directory.RunDirectory(run_dir).update_record(horizon=horizon)  # for whoever watches
        with trainer.event("create_config"):
            model_config = run.model.create_config()
        engine_config = assemble.engine_config(run, model_config, world.size)
        with trainer.event("create_model"), engine.model_init(engine_config):
            start = assemble.starting_weights(run)
            model = assemble.create_model(run, model_config, tokenizer, start, weights)
        facts = model_facts(model)
        if run.model.compile:
            compile_layers(model, run.model.compile_backend)
        with trainer.event("create_optimizer"):
            optimizer = run.optimizer.create_optimizer(model)
        with trainer.event("create_scheduler"):
            scheduler = run.scheduler.create_scheduler(optimizer, horizon)
        deepspeed_engine = engine.initialize(model, optimizer, engine_config)
        shown = trains and world.is_main and run.log.prints(world)
        memory = describe(run, loader.summary()["supervised_share"], tokenizer) if shown else []
        assemble.seed_everything(run.seed + world.rank)  # ranks draw different dropout

        state = training_state(run, run_dir, world, deepspeed_engine, scheduler, tokenizer, dealt, start)
        resumed_from = resume(run, state) if trains else None
        if trains:
            check_space(run.checkpoint.values(), facts.parameters, facts.trainable, run.model.torch_dtype.itemsize)
        metrics_file: MetricsFile | None = None
        trackers: list[Tracker] = []
        if trains and world.is_main:
            known = outcome.statistics(loader, eval_loader, facts)
            run_directory.RunDirectory(run_dir).update_record(statistics=known)
            metrics_file, trackers = open_outputs(run, run_dir)
        header.print_header(
            run, run_dir, world, facts, loader, eval_loader, horizon, resumed_from, weights or start, memory
        )
        display = Display(horizon, state.progress.global_step, enabled=run.log.prints(world))
        trainer.equip(
            Toolbox(
                world, device, run_dir, loader, eval_loader, run.model, run.converters, deepspeed_engine,
                engine_config, scheduler, state, list(run.checkpoint.values()), trackers, metrics_file, display, stop,
                run.log.interval, facts.flops_shape, bool(getattr(run.data, "packing", False)),
            )
        )  # fmt: skip
    return trainer, resumed_from


def training_state(
    run: config.Run,
    run_dir: Path,
    world: World,
    deepspeed_engine: Any,
    scheduler: Any,
    tokenizer: Any,
    dealt: Loader,
    start: initial_weights.Weights | None,
) -> TrainingState:
    """Return what checkpoints hold: everything that the rest of the run depends on. Collective."""
    frozen = assemble.frozen_weights(run, deepspeed_engine.module)
    return TrainingState(
        deepspeed_engine,
        scheduler,
        tokenizer,
        Progress(),
        world,
        run_dir,
        identity={
            "config_hash": config.run_id(run),
            "data_fingerprint": dealt.fingerprint,
            "zero_stage": run.deepspeed.stage,
            "frozen_weights": frozen,
        },
        logs=[run_dir / "metrics.jsonl"],
        base=assemble.base_of(run),
        frozen_elsewhere=frozen is not None,
        rebuild=lambda: assemble.create_model(run, run.model.create_config(), tokenizer, start, quantize=False),
        stop_tokens=lambda: stop_tokens(dealt, tokenizer, getattr(run.data, "eot_tokens", ())),
        stream=dealt if isinstance(dealt, Stream) else None,
    )


def open_outputs(run: config.Run, run_dir: Path) -> tuple[MetricsFile, list[Tracker]]:
    """Open the metrics file, less what a resumed run does over, and have the trackers begin or go on."""
    trackers = list(run.tracking.values())
    for tracker in trackers:
        tracker.start(run_dir, f"{run.name}/{run_dir.name}", outcome.read_config(run_dir))
    return MetricsFile(run_dir / "metrics.jsonl"), trackers


def resume(run: config.Run, state: TrainingState) -> Path | None:
    """Bind the checkpoint engines to the state and restore it from the one that resumes, where it has something."""
    for checkpoint in run.checkpoint.values():
        checkpoint.bind(state)
    loaded = [checkpoint.load() for checkpoint in run.checkpoint.values() if checkpoint.auto_resume]
    if not any(loaded) and state.world.is_main:
        for path in state.logs:
            path.unlink(missing_ok=True)  # lines of a start that never reached a checkpoint
    distributed.barrier()
    return next((path for path in loaded if path), None)
