"""Builds what a trainer works with: its toolbox, its metrics file and its trackers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_hydra import determinism, display, engine
from arctic_hydra.assembly.base_weights import warn_of_another_base
from arctic_hydra.assembly.run_data import Data
from arctic_hydra.assembly.run_model import Model, create_model
from arctic_hydra.callback.base import TRAINER_STATE
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.checkpoint.base import TrainingState
from arctic_hydra.config import Run
from arctic_hydra.metrics import MetricsFile, read_metrics
from arctic_hydra.report.outcome import read_run_config, statistics
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.stopping import StopRequest
from arctic_hydra.tracking.base import Tracker, call_each
from arctic_hydra.trainer.base import Trainer
from arctic_hydra.trainer.parts.saving import OwnState
from arctic_hydra.trainer.toolbox import Toolbox

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True, frozen=True)
class Outputs:
    """Destinations of metrics; empty on all ranks except the first, and when a checkpoint is only evaluated."""

    metrics_file: MetricsFile | None = None
    trackers: list[Tracker] = field(default_factory=list)


def open_outputs(run: Run, run_dir: Path, data: Data, model: Model) -> Outputs:
    """Record the statistics of data and model, open `metrics.jsonl` for appending, and start the trackers."""
    if not data.world.is_main:
        return Outputs()
    read_metrics(run_dir / "metrics.jsonl")  # damaged lines would fail the run at its end
    directory = RunDirectory(run_dir)
    run.trainer.export_verdicts.update(directory.record().get("verification", {}))  # of a start that stopped
    directory.update_record(statistics=statistics(data.loader, data.eval_loader, model.facts))
    trackers = list(run.tracking.values())
    if trackers:
        trackers = call_each(trackers, "start", run_dir, f"{run.name}/{run_dir.name}", read_run_config(run_dir))
    return Outputs(metrics_file=MetricsFile(run_dir / "metrics.jsonl"), trackers=trackers)


def finish_trackers(trainer: Trainer, status: str) -> None:
    """Finish the run in every tracker with `status`."""
    call_each(trainer.tools.trackers, "finish", status)


def toolbox(
    run: Run, run_dir: Path, data: Data, model: Model, state: TrainingState, stop: StopRequest, outputs: Outputs
) -> Toolbox:
    """Return the trainer's toolbox."""
    return Toolbox(
        world=data.world,
        device=data.world.device,
        run_dir=run_dir,
        loader=data.loader,
        eval_loader=data.eval_loader,
        model_factory=run.model,
        converters=run.converters,
        engine=model.engine,
        engine_config=model.engine_config,
        scheduler=model.scheduler,
        state=state,
        checkpoints=list(run.checkpoint.values()),
        trackers=outputs.trackers,
        metrics_file=outputs.metrics_file,
        display=display.current(),
        stop=stop,
        log_interval=run.log.interval,
        flops_shape=model.facts.flops_shape,
        packed=run.data.packs,
        create_model=lambda path: _once_more(run, data, model, path),
        evaluates=model.weights is not None,
        cache_directory=run.data.cache_directory,
    )


def _once_more(run: Run, data: Data, model: Model, path: str | None) -> torch.nn.Module:
    """Return the run's model with its first weights, or with those of `path`, while the random state stays. Collective."""
    start, found = model.start, initial_weights.find_weights(Path(path)) if path else None
    if found and not initial_weights.is_adapter_export(found.path):
        start, found = found, None
    if found:
        warn_of_another_base(run, found.path)
    with determinism.kept_random_state(), engine.model_init(model.engine_config):
        # An adapter is loaded over the weights that the run starts from.
        return create_model(run, run.trainer.create_config(run.model), data.tokenizer, start, found)


def set_up(run: Run, tools: Toolbox) -> None:
    """Call the trainer's `setup`, with equal random numbers on all ranks; load its state, if any; probe its loss; `prepare`."""
    with determinism.kept_random_state():
        determinism.seed_everything(run.seed)
        run.trainer.setup(tools)
    own = tools.state.callbacks[TRAINER_STATE]
    assert isinstance(own, OwnState)
    own.set_up()
    run.trainer.probe()
    run.trainer.prepare()
