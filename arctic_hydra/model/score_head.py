"""The score head of a sequence classifier: one linear layer from the last hidden state of a document to its reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_hydra.component import SEQUENCE_CLASSIFIER
from arctic_hydra.distributed import gathered, whole_shape
from arctic_hydra.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

SCORE_WEIGHT = "score.weight"
"""Name of the head's weight in transformers' classifiers of causal models."""


def classifier_config(config: Any) -> PretrainedConfig:
    """Return the config of a causal or a reward model, set to one label.

    Raises ModelError for an architecture without a sequence classifier, and for a classifier of several labels.
    """
    from transformers import AutoModelForSequenceClassification

    own_code = SEQUENCE_CLASSIFIER in (getattr(config, "auto_map", None) or {})
    if not own_code and type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(
            f"model: transformers has no {SEQUENCE_CLASSIFIER} for model type {config.model_type!r}, so there is no score head to "
            "train; choose an architecture that has one, such as llama, qwen3 or gemma3"
        )
    names = getattr(config, "architectures", None) or []
    if config.num_labels != 1 and any(str(name).endswith("ForSequenceClassification") for name in names):
        raise ModelError(
            f"model: got a {names[0]} of {config.num_labels} labels, expected a causal language model, or a reward model, which has "
            "one label"
        )
    config.num_labels = 1
    return config  # type: ignore[no-any-return]


def score_head(model: Any) -> torch.nn.Module | None:
    """Return the score head of a classifier, also where peft wraps the model or the head; None for other models."""
    from torch import nn

    found = getattr(model, SCORE_WEIGHT.partition(".")[0], None)
    return found if isinstance(found, nn.Module) else None


def check_score_head(model: PreTrainedModel) -> None:
    """Raise ModelError for a classifier whose head is not a linear layer without bias, named `score`, after the body."""
    from torch import nn

    head, body = score_head(model), getattr(model, model.base_model_prefix, None)
    if not isinstance(head, nn.Linear) or head.bias is not None or body is None:
        raise ModelError(
            f"model: {type(model).__name__} has no linear layer `score` without bias over the hidden states of its body, from which a "
            "reward could be read; choose a causal architecture such as llama, qwen3 or gemma3"
        )


def initialize_score_head(model: Any) -> None:
    """Draw the head's weight from a normal distribution as transformers does; collective under ZeRO-3.

    It is the same on every rank and at every ZeRO stage, where loading a model draws different numbers of random numbers.
    """
    import torch

    weight = model.score.weight
    generator = torch.Generator().manual_seed(torch.initial_seed())
    deviation = float(getattr(model.config.get_text_config(), "initializer_range", 0.02))
    drawn = torch.normal(0.0, deviation, whole_shape(weight), generator=generator)
    with torch.no_grad(), gathered(weight, writes=True):
        if weight.numel():
            weight.copy_(drawn)


def fit_score_head(stored: dict[str, Any], model: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the weights of a causal model without those outside of its body, and the names that a classifier adds to them.

    Weights that hold the head or have other names, such as those of an adapter, and other models are left as they are.
    """
    body = f"{getattr(model, 'base_model_prefix', '')}."
    if score_head(model) is None or SCORE_WEIGHT in stored or not any(name.startswith(body) for name in stored):
        return stored, frozenset()
    return {name: value for name, value in stored.items() if name.startswith(body)}, frozenset({SCORE_WEIGHT})
