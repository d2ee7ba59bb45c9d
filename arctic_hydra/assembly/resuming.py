"""The state that checkpoints save and restore, and resuming from it."""

from __future__ import annotations

from pathlib import Path

from arctic_hydra import distributed
from arctic_hydra.assembly.base_weights import base_of, frozen_weights
from arctic_hydra.assembly.run_data import Data
from arctic_hydra.assembly.run_model import Model, create_model
from arctic_hydra.callback.base import TRAINER_STATE
from arctic_hydra.checkpoint.base import Stream, TrainingState
from arctic_hydra.checkpoint.rank_state import set_learning_rates
from arctic_hydra.config import Run, has_legacy_id, run_id
from arctic_hydra.data.load.stop_tokens import stop_tokens
from arctic_hydra.errors import ConfigError
from arctic_hydra.provenance import package_versions
from arctic_hydra.scheduler.extended import continue_schedule, warmup_steps
from arctic_hydra.trainer.parts.saving import OwnState


def training_state(run: Run, run_dir: Path, data: Data, model: Model) -> TrainingState:
    """Return the state that checkpoints save and restore. Collective."""
    frozen = frozen_weights(run, model.engine.module)
    loader, tokenizer = data.group_loader, data.tokenizer
    config_hash = run_dir.name if has_legacy_id(run, run_dir) else run_id(run)
    return TrainingState(
        model.engine,
        model.scheduler,
        tokenizer,
        run.trainer.progress,
        data.world,
        run_dir,
        identity={
            "config_hash": config_hash,
            "data_fingerprint": loader.fingerprint,
            "zero_stage": run.deepspeed.stage,
            "frozen_weights": frozen,
            "versions": package_versions() if data.world.is_main else {},  # rank 0 writes the manifest
        },
        logs=[run_dir / "metrics.jsonl"],
        callbacks={**run.callback, TRAINER_STATE: OwnState(run.trainer)},
        base=base_of(run),
        omits_frozen_weights=frozen is not None,
        create_initial_model=lambda: create_model(
            run, run.trainer.create_config(run.model), tokenizer, model.start, quantize=False
        ),
        stop_tokens=lambda: stop_tokens(loader, tokenizer, run.data.end_of_turn_tokens),
        stream=loader if isinstance(loader, Stream) else None,
        extends=Path(run.extend) if run.extend else None,
    )


def resume(run: Run, state: TrainingState) -> Path | None:
    """Bind the checkpoint engines to the state and restore it from the newest valid checkpoint; return its path, if any.

    A run that has not saved a checkpoint yet continues that of the run that it extends. Collective.
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


def _continue_schedule(run: Run, state: TrainingState, peaks: list[float]) -> None:
    """Set the learning rates of a run that extends another one; raises ConfigError if it has no further steps."""
    start, horizon, how = state.extended_at, run.trainer.training_horizon, run.extend_schedule
    if horizon <= start:
        raise ConfigError(
            f"extend: {run.extend} has {start} steps, and this run {horizon} in all; raise trainer.epochs or trainer.train_iters"
        )
    run.trainer.set_warmup(warmup_steps(run.scheduler, how, start, horizon))
    rates = continue_schedule(state.scheduler, run.scheduler, how, peaks, start, horizon)
    set_learning_rates(state.scheduler.optimizer, rates)
