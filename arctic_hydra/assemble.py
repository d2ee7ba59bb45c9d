"""From the factories to the model that trains: the same for training, evaluation, export and estimates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import engine
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.data.base import BatchGeometry
from arctic_hydra.errors import ModelError
from arctic_hydra.hub import looks_like_path
from arctic_hydra.model.vocabulary import fit_vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.config import Run
    from arctic_hydra.distributed import World


def geometry(run: Run, dealt_to: World) -> BatchGeometry:
    """Return how examples make up the batches of each rank of `dealt_to`, see `World.data_parallel`."""
    trainer = run.trainer
    return BatchGeometry(
        trainer.micro_batch_size, trainer.gradient_accumulation_steps, dealt_to, run.seed, trainer.train_iters
    )


def engine_config(run: Run, model_config: Any, ranks: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for `ranks` ranks, with every `auto` filled in.

    Raises ConfigError where the model's heads cannot be divided among the ranks of a sequence group.
    """
    from arctic_hydra.model.ulysses import check_heads

    trainer = run.trainer
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
    """Return the run's model, converted, with the weights of `init_from` (`start`), then those of a checkpoint of the run.

    Those of `start` go in before the converters where they are those of a plain model, so that an adapter is put
    over them, else after. The result depends on the run alone, not on ZeRO stage or ranks. Collective under ZeRO-3,
    within `engine.model_init`.
    """
    seed_everything(run.seed)
    if start or weights:
        engine.import_deepspeed()  # checkpoints hold three of its classes
    run.model.quantization = run.peft.quantization_config(run.model.torch_dtype) if quantize else None  # type: ignore[misc]
    check_vocabulary(run, model_config, tokenizer)
    model: Any = run.model.create_model(model_config)
    if run.trainer.sequence_parallel_size > 1:
        from arctic_hydra.model.ulysses import share_positions

        share_positions(model)
    fit_vocabulary(model, len(tokenizer), run.tokenizer.added_ids(tokenizer), run.tokenizer.pad_vocab_to_multiple_of)
    stored = initial_weights.read_weights(start) if start else {}
    if start and initial_weights.has_every_name(stored, model):
        initial_weights.load_into(model, stored, start)
        start = None
    seed_everything(run.seed)  # loading draws more or fewer numbers at ZeRO-3
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
    """Return what `init_from` names, verified; collective."""
    return initial_weights.find_weights(Path(run.init_from)) if run.init_from else None


def frozen_weights(run: Run, model: torch.nn.Module) -> str | None:
    """Return the checksum of the frozen weights, where each start of the run reads them again; else None. Collective."""
    from arctic_hydra.checkpoint.full_weights import checksum

    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if not frozen or not (run.model.stored or run.init_from):
        return None
    return checksum(model, frozen) if run.model.quantization is None else initial_weights.UNCHECKED


def base_of(run: Run) -> str | None:
    """Return from where transformers loads the weights that an adapter of this run is put over, or None.

    A hub id, or the absolute path of a directory: an export is loaded from anywhere.
    """
    if run.init_from:
        return _absolute(run.init_from) if initial_weights.is_full_model_export(Path(run.init_from)) else None
    if not run.model.stored:
        return None
    name = str(run.model.name_or_path)  # type: ignore[attr-defined]
    return _absolute(name) if looks_like_path(name) else name


def adapter_base(run: Run) -> tuple[str | None, str | None]:
    """Return `base_of` the run, and the revision on the hub where that is a hub id."""
    base = base_of(run)
    on_hub = base is not None and not run.init_from and not looks_like_path(base)
    return base, getattr(run.model, "revision", None) if on_hub else None


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def check_vocabulary(run: Run, model_config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with more tokens than the model has embedding rows, but for those that were added."""
    rows, tokens = getattr(model_config.get_text_config(), "vocab_size", None), len(tokenizer)
    if rows is not None and tokens - len(run.tokenizer.added_ids(tokenizer)) > rows:
        raise ModelError(
            f"model: has {rows} embedding rows, but the tokenizer has {tokens} tokens; use the model's own "
            f"tokenizer (tokenizer=hf), or a model with a larger vocabulary"
        )


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
