"""The model of a run: created, converted, and in its DeepSpeed engine with optimizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arctic_hydra import cross_checks, determinism, display, distributed, engine, without_garbage_collection
from arctic_hydra.assembly.base_weights import adapter_base, starting_weights, warn_of_another_base
from arctic_hydra.assembly.run_data import Data
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint
from arctic_hydra.component import Component, class_name
from arctic_hydra.config import Run, Task
from arctic_hydra.converter.base import Phase
from arctic_hydra.errors import ConfigError, ModelError
from arctic_hydra.human_numbers import listed, quantity
from arctic_hydra.model.names import QUANTIZATION
from arctic_hydra.model.score_head import fit_score_head
from arctic_hydra.model.ulysses import check_heads, share_positions
from arctic_hydra.model.vocabulary import fit_vocabulary
from arctic_hydra.report.facts import ModelFacts, model_facts
from arctic_hydra.run_directory import relative

if TYPE_CHECKING:
    import deepspeed
    import torch
    from transformers import PreTrainedTokenizerBase


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


def build_model(
    run: Run, data: Data, weights: initial_weights.Weights | None = None, *, resumes: bool = False
) -> Model:
    """Build the model, optimizer and schedule and pass them to DeepSpeed; `weights` replace the model's initial weights.

    With `resumes`, what is shown says that the engine will load the weights of a checkpoint.
    """
    trainer = run.trainer
    with without_garbage_collection(), trainer.event("create_config") as about:  # the first that imports models
        model_config = about["config"] = trainer.create_config(run.model)
    settings = engine_config(run, model_config, data.world.size)
    begin = (
        "random, until those of the checkpoint are loaded" if resumes else "random, as the config describes the model"
    )
    with display.phase("weights", begin) as loading:
        with trainer.event("create_model", config=model_config) as about, engine.model_init(settings):
            start = starting_weights(run)
            for loaded in filter(None, (start, weights)):
                warn_of_another_base(run, loaded.path)
            if origin := (weights or start):
                loading.about = f"from {relative(origin.path)}"
            elif run.model.weights_source is not None:
                loading.about = f"from {run.model.weights_source[0]}"
            about["model"] = create_model(run, model_config, data.tokenizer, start, weights)
        model = about["model"]
        facts = model_facts(model)
    ranks = f"{quantity(data.world.size, 'rank')} ({data.world.device.type})"
    with display.phase("engine", f"ZeRO-{run.deepspeed.stage} on {ranks}"):
        model = run.model.parallelize(model)
        with trainer.event("create_optimizer", model=model) as about:
            about["optimizer"] = made(
                trainer.create_optimizer(run.optimizer, model), run.optimizer, "create_optimizer", "an optimizer"
            )
        optimizer = about["optimizer"]
        run.model.post_optimizer_build(optimizer, model)
        with trainer.event("create_scheduler", optimizer=optimizer) as about:
            schedule = trainer.create_scheduler(run.scheduler, optimizer, trainer.training_horizon)
            about["scheduler"] = made(schedule, run.scheduler, "create_scheduler", "a schedule")
        built = trainer.create_engine(model, optimizer, settings)
    return Model(
        engine=built,
        engine_config=settings,
        scheduler=about["scheduler"],
        facts=facts,
        start=start,
        weights=weights,
    )


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
    model: Any = made(run.trainer.create_model(run.model, model_config), run.trainer, "create_model", "a model")
    check_interface(model)
    if run.trainer.sequence_parallel_size > 1:
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
    model = _converted(run, model)
    if start:
        initial_weights.load_into(model, stored, start)
    if weights:
        initial_weights.load_into(model, initial_weights.read_weights(weights), weights)
    if initial_weights.has_adapter(model):
        adapter = model.peft_config["default"]
        adapter.base_model_name_or_path, adapter.revision = adapter_base(run)
    return model  # type: ignore[no-any-return]


def _converted(run: Run, model: Any) -> Any:
    """Return the model after its converters; raises ConfigError for one that makes weights which an export would lose."""
    exports = [(name, engine) for name, engine in run.checkpoint.items() if isinstance(engine, HuggingFaceCheckpoint)]
    verified = [name for name, engine in exports if engine.enabled and engine.verify and run.task is Task.train]
    for converter in run.converters:
        is_checked = verified and converter.phase is Phase.modules
        before = (_weights(model), _config(model)) if is_checked else None
        model = made(converter.convert(model), converter, "convert", "the model")
        if before is None or _config(model) != before[1]:  # else transformers would not build the model as it is now
            continue
        if changed := _weights(model) ^ before[0]:
            names = sorted({name for name, _ in changed})
            raise ConfigError(
                f"converter: {class_name(converter)} adds, removes, renames or reshapes weights ({listed(names, most=3)}), which "
                "transformers would not load from an export, as its config is the same; pass checkpoint=deepspeed to export nothing, "
                f"or checkpoint.{verified[0]}.verify=false to export them all the same"
            )
    return model


def _config(model: Any) -> dict[str, Any]:
    return dict(model.config.to_dict()) if hasattr(model, "config") else {}  # to_dict copies


def _weights(model: Any) -> set[tuple[str, tuple[int, ...]]]:
    """Return name and shape of each weight that is saved."""
    return {(name, distributed.whole_shape(value)) for name, value in model.state_dict(keep_vars=True).items()}


def engine_config(run: Run, model_config: Any, ranks: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for `ranks` ranks, with every `auto` filled in.

    Raises ConfigError if the model's heads cannot be divided among the ranks of a sequence group.
    """
    trainer = run.trainer
    check_length(run, model_config)
    check_heads(model_config, trainer.sequence_parallel_size)
    hidden_size = int(model_config.get_text_config().hidden_size)
    accumulation = trainer.gradient_accumulation_steps
    return run.deepspeed.fill(trainer.micro_batch_size, accumulation, ranks, run.model.dtype, hidden_size)


def check_length(run: Run, model_config: Any) -> None:
    """Raise ConfigError if examples may have more tokens than the model has positions."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if problems := list(cross_checks.position_problems(run, limit)):
        raise ConfigError(problems)


def check_vocabulary(run: Run, model_config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError if the tokenizer has more tokens, without the added ones, than the model has embedding rows."""
    rows, tokens = getattr(model_config.get_text_config(), "vocab_size", None), len(tokenizer)
    if rows is not None and tokens - len(run.tokenizer.added_ids(tokenizer)) > rows:
        raise ModelError(
            f"model: has {rows} embedding rows, but the tokenizer has {tokens} tokens; use the model's own "
            f"tokenizer (tokenizer=hf), or a model with a larger vocabulary"
        )


def made(value: Any, maker: Component, method: str, what: str) -> Any:
    """Return the result of a factory method; raises ConfigError if it is None."""
    if value is None:
        group = maker.option_group or type(maker).__name__
        raise ConfigError(f"{group}: `{method}` returned None, expected {what}; end it with `return`")
    return value


def check_interface(model: torch.nn.Module) -> None:
    """Raise ConfigError for a model that lacks what converters, trainer and exports ask of a transformers model."""
    from transformers import PreTrainedModel

    from arctic_hydra.model.transformers_wrapper import missing_names

    if not isinstance(model, PreTrainedModel) and (missing := missing_names(model)):
        raise ConfigError(
            f"model: create_model() returned a {type(model).__name__}, which is not a transformers model and lacks "
            f"{', '.join(missing)}; register it as a ModelSpec and pass model=spec, which needs less (docs/extending/models.md)"
        )
