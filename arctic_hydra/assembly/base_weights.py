"""Where a run's weights come from: `init_from`, a checkpoint, and the base of an adapter."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_hydra.callback.ema import ExponentialMovingAverage
from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.config import Run
from arctic_hydra.hub import absolute, looks_like_path

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


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
    return _stored_model(run)


def _stored_model(run: Run) -> str | None:
    """Return the hub id or the absolute path that the run's model is loaded from; None for one that is created."""
    if run.model.weights_source is None:
        return None
    name, _ = run.model.weights_source
    return absolute(name) if looks_like_path(name) else name


def warn_of_another_base(run: Run, path: Path) -> None:
    """Warn if the weights in `path` are an adapter that was trained over another base than the model of the run.

    It is no error, since a copy of the same model may have another name.
    """
    if not initial_weights.is_adapter_export(path):
        return
    own = base_of(run) if run.init_from and Path(run.init_from) != path else _stored_model(run)
    trained_over = initial_weights.adapter_config(path).get("base_model_name_or_path")
    if own and trained_over and trained_over != own:
        log.warning(
            "the adapter in %s was trained over %s, and is loaded over %s; choose the former unless they are the same model",
            path,
            trained_over,
            own,
        )


def adapter_base(run: Run) -> tuple[str | None, str | None]:
    """Return `base_of` the run, and its revision if it is a hub id."""
    base = base_of(run)
    source = run.model.weights_source
    on_hub = base is not None and not run.init_from and not looks_like_path(base)
    return base, source[1] if on_hub and source else None
