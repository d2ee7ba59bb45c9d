"""The repeated layers of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


_MARK = "is_repeated_layer"


def layer_configs(config: PretrainedConfig) -> list[Any]:
    """Return the text model's config, or one config per layer if its layers differ (such as the head sizes of Gemma 4).

    transformers refuses to read values that differ between layers from the whole config.
    """
    text = config.get_text_config()
    return list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text]


def layers(model: torch.nn.Module) -> list[Any]:
    """Return the repeated layers of a model, in order: transformers' own kind, and those that `mark_layer` has marked."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = model.modules()
    return [m for m in found if isinstance(m, GradientCheckpointingLayer) or getattr(m, _MARK, False)]


def mark_layer(module: torch.nn.Module) -> None:
    """Let `layers` find a layer that is not of transformers' kind."""
    setattr(module, _MARK, True)


def compile_layers(model: torch.nn.Module, backend: str) -> None:
    """Compile each repeated layer separately: all layers share the generated code."""
    for layer in layers(model):
        layer.compile(backend=backend)
