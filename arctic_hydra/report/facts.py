"""Sizes of a model for the header, the throughput and the disk space estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arctic_hydra.component import class_name
from arctic_hydra.distributed import count_numbers
from arctic_hydra.model.layers import EXPERT_COUNTS, EXPERTS_PER_TOKEN, layer_configs
from arctic_hydra.model.score_head import score_head


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model, taken before the engine shards it."""

    name: str
    parameters: int
    trainable: int
    flops_shape: tuple[float, float, int, int]
    """FLOPs of the body per token and of the head per supervised token, layers, attention width (0 if unknown)."""


def model_facts(model: Any) -> ModelFacts:
    """Count parameters.

    The sizes of embedding and head come from the config, because an adapter may wrap or copy them.
    """
    text = model.config.get_text_config()
    sizes = {id(p): count_numbers(p) for p in model.parameters()}
    trainable = sum(sizes[id(p)] for p in model.parameters() if p.requires_grad)
    flops = sum(sizes[id(p)] * _flops(p) * _used_share(name, text) for name, p in model.named_parameters())
    table = int(text.vocab_size * text.hidden_size)
    scores = score_head(model) is not None  # a classifier has no head over the vocabulary
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(text, "tie_word_embeddings", False)
    tables = [embeddings] if head is None or tied else [embeddings, head]
    body = flops - table * sum(_flops_of(each) for each in tables)
    projected = 0 if scores else table * _flops_of(tables[-1])
    widths = [_attention_width(layer) for layer in layer_configs(model.config)]
    shape = (body, projected, int(text.num_hidden_layers), sum(widths) // len(widths))
    return ModelFacts(class_name(model), sum(sizes.values()), trainable, shape)


def _flops(parameter: Any) -> int:
    """Return the FLOPs of a forward and backward pass per token and number: a frozen parameter needs no gradient."""
    return 6 if parameter.requires_grad else 4


def _flops_of(module: Any) -> int:
    return max((_flops(parameter) for parameter in module.parameters()), default=4)


def _used_share(name: str, text: Any) -> float:
    """Return the share of a parameter that a token uses: of a mixture's experts, only those that it is routed to."""
    if ".experts." not in f".{name}.":
        return 1
    experts = next((count for key in EXPERT_COUNTS if (count := getattr(text, key, None))), None)
    used = next((count for key in EXPERTS_PER_TOKEN if (count := getattr(text, key, None))), None)
    return used / experts if used and experts else 1


def _attention_width(layer: Any) -> int:
    """Return heads times head size from a layer's config, or 0 if it has no heads, which omits the FLOPs of attention."""
    heads = getattr(layer, "num_attention_heads", None) or 0
    return int(heads * (getattr(layer, "head_dim", None) or layer.hidden_size // heads)) if heads else 0
