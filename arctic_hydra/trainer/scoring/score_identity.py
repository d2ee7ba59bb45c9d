"""What the scores of a frozen model depend on, apart from the documents."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from arctic_hydra.converter.base import Phase
from arctic_hydra.data.code_identity import code_identity

if TYPE_CHECKING:
    from arctic_hydra.converter.base import ModelConverter
    from arctic_hydra.trainer.toolbox import Toolbox

VERSION = 1
"""Part of the key; increment it when the same model and documents give other numbers."""
_NOT_NUMBERS = frozenset({"transformers_version", "architectures", "use_cache"})
_PRECISION_OF_ENGINE = ("torch_autocast", "weight_quantization")


def scores_depend_on(
    tools: Toolbox, config: Any, checksum: str, *, in_chunks: bool, adapter_off: bool = False
) -> dict[str, Any]:
    """Return JSON values that change with the numbers: weights by their checksum, `config` and kernels of the model, precision.

    With `in_chunks`, the head computes a part of the logits at a time; with `adapter_off`, the adapter does not count. Not part
    of it: the code of a user's model class.
    """
    factory = tools.model_factory
    return {
        "version": VERSION,
        "weights": checksum,
        "dtype": str(factory.dtype),
        "engine": _precision_of(tools.engine_config),
        "attention": factory.attn_implementation,
        "model": code_identity(factory),
        "config": _values_of(config),
        "converters": [_settings(item) for item in tools.converters if _counts(item, adapter_off)],
        "head": "chunks" if in_chunks else "whole",
        "device": tools.device.type,
    }


def _precision_of(engine_config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with which DeepSpeed computes in another precision than that of the model's dtype."""
    found = {name: engine_config.get(name) for name in _PRECISION_OF_ENGINE}
    quantized = engine_config["zero_optimization"].get("zero_quantized_weights")
    return {name: value for name, value in (found | {"zero_quantized_weights": quantized}).items() if value}


def _values_of(config: Any) -> dict[str, Any]:
    values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    return {key: value for key, value in values.items() if not key.startswith("_") and key not in _NOT_NUMBERS}


def _counts(converter: ModelConverter, adapter_off: bool) -> bool:
    return converter.phase is Phase.modules or (converter.phase is Phase.adapters and not adapter_off)


def _settings(converter: ModelConverter) -> dict[str, Any]:
    values = {item.name: getattr(converter, item.name) for item in fields(converter) if item.name != "_target_"}
    return {"component": code_identity(converter), "settings": values}
