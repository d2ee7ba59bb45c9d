"""Sizes of a model for the header, the throughput and the disk space estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from arctic_hydra.model.layers import layer_configs
from arctic_hydra.model.score_head import score_head


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model, taken before the engine shards it."""

    name: str
    parameters: int
    trainable: int
    flops_shape: tuple[int, int, int, int]
    """Parameters of the body, parameters of the head (size of the embedding), layers, attention width (0 if unknown)."""


def model_facts(model: Any) -> ModelFacts:
    """Count parameters; `ds_numel` holds the full size under ZeRO-3, and `quant_state` the shape of 4-bit weights.

    The sizes of embedding and head come from the config, because an adapter may wrap or copy them.
    """
    text = model.config.get_text_config()
    sizes = {id(p): _numbers(p) for p in model.parameters()}
    trainable = sum(sizes[id(p)] for p in model.parameters() if p.requires_grad)
    total = sum(sizes.values())
    table = int(text.vocab_size * text.hidden_size)
    scores = score_head(model) is not None  # a classifier has no head over the vocabulary
    own_head = model.get_output_embeddings() is not None and not getattr(text, "tie_word_embeddings", False)
    body, projected = total - table * (2 if own_head else 1), 0 if scores else table
    widths = [_attention_width(layer) for layer in layer_configs(model.config)]
    shape = (body, projected, int(text.num_hidden_layers), sum(widths) // len(widths))
    return ModelFacts(getattr(model, "model_name", type(model).__name__), total, trainable, shape)


def _attention_width(layer: Any) -> int:
    """Return heads times head size from a layer's config, or 0 if it has no heads, which omits the FLOPs of attention."""
    heads = getattr(layer, "num_attention_heads", None) or 0
    return int(heads * (getattr(layer, "head_dim", None) or layer.hidden_size // heads)) if heads else 0


def _numbers(parameter: Any) -> int:
    packed = getattr(parameter, "quant_state", None)
    return math.prod(packed.shape) if packed else int(getattr(parameter, "ds_numel", parameter.numel()))
