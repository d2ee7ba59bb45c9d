"""The decoder layers of a transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


def layer_configs(config: PretrainedConfig) -> list[Any]:
    """Return the text model's config, or one config per layer if its layers differ (such as the head sizes of Gemma 4).

    transformers refuses to read values that differ between layers from the whole config.
    """
    text = config.get_text_config()
    return list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text]


def layers(model: torch.nn.Module) -> list[Any]:
    """Return the transformer layers of a transformers model, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(model: torch.nn.Module, backend: str) -> None:
    """Compile each transformer layer separately: all layers share the generated code."""
    for layer in layers(model):
        layer.compile(backend=backend)
