"""Builds the parts of a run from its factories, for training, evaluation, export and the memory estimate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import cross_checks, determinism, display, distributed, engine, log
from arctic_hydra.callback.base import TRAINER_STATE
from arctic_hydra.callback.ema import ExponentialMovingAverage
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.checkpoint.base import Stream, TrainingState
from arctic_hydra.config import Run, has_legacy_id, run_id
from arctic_hydra.data.base import BatchGeometry, Loader
from arctic_hydra.data.code_identity import legacy_identity
from arctic_hydra.data.load.sequence_parallel import shard_loader
from arctic_hydra.data.load.stop_tokens import stop_tokens
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError, ModelError
from arctic_hydra.hub import absolute, looks_like_path
from arctic_hydra.metrics import MetricsFile, read_metrics
from arctic_hydra.model.names import QUANTIZATION
from arctic_hydra.model.score_head import fit_score_head
from arctic_hydra.model.vocabulary import fit_vocabulary
from arctic_hydra.provenance import package_versions
from arctic_hydra.report.facts import ModelFacts
from arctic_hydra.report.outcome import read_config, statistics
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.stopping import StopRequest
from arctic_hydra.tracking.base import Tracker, call_each
from arctic_hydra.trainer.base import Trainer
from arctic_hydra.trainer.parts.saving import OwnState
from arctic_hydra.trainer.toolbox import Toolbox

if TYPE_CHECKING:
    import deepspeed
    import torch
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, frozen=True)
class Data:
    """The tokenizer and the batches of one rank."""

    world: World
    tokenizer: PreTrainedTokenizerBase
    group_loader: Loader
    """Batches of this rank's sequence group; checkpoints record their position."""
    loader: Loader
    """This rank's share of them."""
    eval_loader: Loader | None


@dataclass(kw_only=True, frozen=True)
class Model:
    """A model in its DeepSpeed engine, with its schedule, its sizes and the weights it was loaded from."""

    engine: deepspeed.DeepSpeedEngine
    engine_config: dict[str, Any]
    scheduler: torch.optim.lr_scheduler.LRScheduler
    facts: ModelFacts
    start: initial_weights.Weights | None
    """The weights of `init_from`, if any."""
    weights: initial_weights.Weights | None
    """The weights of a checkpoint of the run, which replace those of `init_from`, if any."""


@dataclass(kw_only=True, frozen=True)
class Outputs:
    """Destinations of metrics; empty on all ranks except the first, and when a checkpoint is only evaluated."""

    metrics_file: MetricsFile | None = None
    trackers: list[Tracker] = field(default_factory=list)


@contextmanager
def report_exceptions(run: Run, run_dir: Path) -> Iterator[None]:
    """Call `on_exception` of every callback for an error raised in this context, then raise it again."""
    run.trainer.set_callbacks(list(run.callback.values()), World.from_env())
    try:
        yield
    except Exception as error:
        try:
            run.trainer.notify("exception", run.trainer, {"error": error, "run_dir": run_dir})
        except Exception:
            logger.exception("a callback failed in on_exception")
        raise


def start_process(run: Run, run_dir: Path) -> None:
    """Open the log of this rank; raise ConfigError if this machine cannot run it, or if the model's code does not qualify."""
    start_log(run, run_dir)
    if problems := run.environment_problems():
        raise ConfigError(problems)
    run.model.check_model()


def start_log(run: Run, run_dir: Path) -> None:
    """Open the log of this rank, on the terminal and in `logs/`, as the config group `log` selects."""
    world = World.from_env()
    log.start(run_dir, world, run.log.level, to_file=run.log.writes(world), to_terminal=run.log.prints(world))
    log.quiet_progress_bars()


def join_ranks(run: Run) -> World:
    """Start the process groups, seed this process, and return its place among the ranks. Collective."""
    world, trainer = World.from_env(), run.trainer
    if run.deterministic:
        determinism.use_deterministic_algorithms()
    distributed.start(world, trainer.collective_timeout_seconds)
    distributed.start_sequence_groups(world, trainer.sequence_parallel_size, trainer.collective_timeout_seconds)
    determinism.seed_everything(run.seed)
    return world


def create_loaders(run: Run, run_dir: Path, tokenizer: PreTrainedTokenizerBase, world: World) -> Data:
    """Return this rank's training and evaluation batches, padded to one size if the model is compiled."""
    dealt_to = world.data_parallel(run.trainer.sequence_parallel_size)
    padding = run.pack_tokens, run.data.row_multiple
    with run.trainer.event("create_loader", tokenizer=tokenizer) as facts, legacy_identity(has_legacy_id(run, run_dir)):
        loaders = run.trainer.create_data(run.data, tokenizer, geometry(run, dealt_to))
        facts["loader"], facts["eval_loader"] = loaders
    group_loader, eval_loader = facts["loader"], loaders[1]
    return Data(
        world=world,
        tokenizer=tokenizer,
        group_loader=group_loader,
        loader=shard_loader(group_loader, *padding),
        eval_loader=eval_loader and shard_loader(eval_loader, *padding),
    )


def record_horizon(run: Run, run_dir: Path, data: Data) -> None:
    """Write the training horizon into the run's record, for programs that monitor the run."""
    if data.world.is_main:
        RunDirectory(run_dir).update_record(horizon=run.trainer.training_horizon)


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
        trackers = call_each(trackers, "start", run_dir, f"{run.name}/{run_dir.name}", read_config(run_dir))
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
        starts_from_adapter=model.start is not None and not initial_weights.is_full_model_export(model.start.path),
    )


def _once_more(run: Run, data: Data, model: Model, path: str | None) -> torch.nn.Module:
    """Return the run's model with its first weights, or with those of `path`, while the random state stays. Collective."""
    start = initial_weights.find_weights(Path(path)) if path else model.start
    with determinism.kept_random_state(), engine.model_init(model.engine_config):
        return create_model(run, run.trainer.create_config(run.model), data.tokenizer, start)


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


def geometry(run: Run, dealt_to: World) -> BatchGeometry:
    """Return the batch geometry for the data-parallel ranks `dealt_to`, see `World.data_parallel`."""
    trainer = run.trainer
    return BatchGeometry(
        trainer.micro_batch_size, trainer.gradient_accumulation_steps, dealt_to, run.seed, trainer.train_iters
    )


def check_length(run: Run, model_config: Any) -> None:
    """Raise ConfigError if examples may have more tokens than the model has positions."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if problems := list(cross_checks.position_problems(run, limit)):
        raise ConfigError(problems)


def engine_config(run: Run, model_config: Any, ranks: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for `ranks` ranks, with every `auto` filled in.

    Raises ConfigError if the model's heads cannot be divided among the ranks of a sequence group.
    """
    from arctic_hydra.model.ulysses import check_heads

    trainer = run.trainer
    check_length(run, model_config)
    check_heads(model_config, trainer.sequence_parallel_size)
    hidden_size = int(model_config.get_text_config().hidden_size)
    accumulation = trainer.gradient_accumulation_steps
    return run.deepspeed.fill(trainer.micro_batch_size, accumulation, ranks, run.model.dtype, hidden_size)


def create_model(
    run: Run,
    model_config: Any,
    tokenizer: PreTrainedTokenizerBase,
    start: initial_weights.Weights | None = None,
    weights: initial_weights.Weights | None = None,
    *,
    quantize: bool = True,
) -> torch.nn.Module:
    """Return the converted model with the weights of `init_from` (`start`) and of a checkpoint of the run (`weights`).

    If `start` holds the weights of a plain model, they are loaded before the converters run, so that adapters wrap them;
    otherwise after. The result depends only on the run, not on the ZeRO stage or the number of ranks. Collective under
    ZeRO-3, within `engine.model_init`.
    """
    determinism.seed_everything(run.seed)
    if start or weights:
        engine.import_deepspeed()  # unpickling a checkpoint needs three of its classes
    check_vocabulary(run, model_config, tokenizer)
    if quantize and (quantization := run.peft.quantization_config(run.model.torch_dtype)) is not None:
        vars(model_config)[QUANTIZATION] = quantization
    model: Any = run.trainer.create_model(run.model, model_config)
    check_interface(model)
    if run.trainer.sequence_parallel_size > 1:
        from arctic_hydra.model.ulysses import share_positions

        share_positions(model)
    fit_vocabulary(model, len(tokenizer), run.tokenizer.added_ids(tokenizer), run.tokenizer.pad_vocab_to_multiple_of)
    stored = initial_weights.read_weights(start) if start else {}
    if start and initial_weights.is_full_model_export(start.path):
        stored = run.model.own_names(stored, model)
    stored, new = fit_score_head(stored, model)
    if start and initial_weights.has_every_name(stored, model):
        initial_weights.load_into(model, stored, start, new)
        start = None
    determinism.seed_everything(run.seed)  # at ZeRO-3, loading draws a different number of random numbers
    for converter in run.converters:
        model = converter.convert(model)
    if start:
        initial_weights.load_into(model, stored, start)
    if weights:
        initial_weights.load_into(model, initial_weights.read_weights(weights), weights)
    if hasattr(model, "peft_config"):
        adapter = model.peft_config["default"]
        adapter.base_model_name_or_path, adapter.revision = adapter_base(run)
    return model  # type: ignore[no-any-return]


def starting_weights(run: Run) -> initial_weights.Weights | None:
    """Return the verified weights that `init_from` names, if any. Collective."""
    return initial_weights.find_weights(Path(run.init_from)) if run.init_from else None


def averaged(run: Run, weights: initial_weights.Weights, purpose: str) -> initial_weights.Weights:
    """Return weights of a checkpoint with the average in place of the trained ones, if `callback.ema` has that for `purpose`."""
    averages = {name: item for name, item in run.callback.items() if isinstance(item, ExponentialMovingAverage)}
    wanted = [name for name, average in averages.items() if getattr(average, purpose)]
    return replace(weights, averaged_by=wanted[-1]) if wanted else weights


def frozen_weights(run: Run, model: torch.nn.Module) -> str | None:
    """Return the checksum of the frozen weights if every start of the run reloads them, else None. Collective."""
    from arctic_hydra.checkpoint.full_weights import checksum

    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if not frozen or not (run.model.stored or run.init_from):
        return None
    quantized = run.peft.quantization_config(run.model.torch_dtype) is not None
    return initial_weights.UNCHECKED if quantized else checksum(model, frozen)


def base_of(run: Run) -> str | None:
    """Return where transformers loads the base weights of an adapter of this run from, or None.

    Either a hub id or the absolute path of a directory, so that an export loads from any working directory.
    """
    if not run.model.is_base_for_peft:
        return None
    if run.init_from:
        return absolute(run.init_from) if initial_weights.is_full_model_export(Path(run.init_from)) else None
    if run.model.weights_source is None:
        return None
    name, _ = run.model.weights_source
    return absolute(name) if looks_like_path(name) else name


def adapter_base(run: Run) -> tuple[str | None, str | None]:
    """Return `base_of` the run, and its revision if it is a hub id."""
    base = base_of(run)
    source = run.model.weights_source
    on_hub = base is not None and not run.init_from and not looks_like_path(base)
    return base, source[1] if on_hub and source else None


def check_vocabulary(run: Run, model_config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError if the tokenizer has more tokens, without the added ones, than the model has embedding rows."""
    rows, tokens = getattr(model_config.get_text_config(), "vocab_size", None), len(tokenizer)
    if rows is not None and tokens - len(run.tokenizer.added_ids(tokenizer)) > rows:
        raise ModelError(
            f"model: has {rows} embedding rows, but the tokenizer has {tokens} tokens; use the model's own "
            f"tokenizer (tokenizer=hf), or a model with a larger vocabulary"
        )


def check_interface(model: torch.nn.Module) -> None:
    """Raise ConfigError for a model that lacks what converters, trainer and exports ask of a transformers model."""
    from transformers import PreTrainedModel

    from arctic_hydra.model.spec_model import missing_names

    if not isinstance(model, PreTrainedModel) and (missing := missing_names(model)):
        raise ConfigError(
            f"model: create_model() returned a {type(model).__name__}, which is no transformers model and lacks "
            f"{', '.join(missing)}; register it as a ModelSpec and pass model=spec, which needs less (docs/extending/models.md)"
        )
