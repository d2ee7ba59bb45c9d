"""The repeated layers of a model, and its blocks of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_hydra.errors import ModelError

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
    """Mark a layer that is not one of transformers, so that `layers` finds it."""
    setattr(module, _MARK, True)


def compile_layers(model: torch.nn.Module, backend: str) -> None:
    """Compile each repeated layer separately: all layers share the generated code."""
    for layer in layers(model):
        layer.compile(backend=backend)


EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names under which the configs of transformers state the number of experts of a layer."""
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")
"""Names under which they state how many of them each token is routed to."""


def expert_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the mixture-of-experts blocks of a model: the smallest modules whose weights ZeRO-3 must gather together.

    The ranks use different experts at a time. If ZeRO-3 gathered each expert when it is used, ranks would wait for each other
    forever. Raises ModelError for experts that no such block contains.
    """
    found: list[torch.nn.Module] = []
    _collect_blocks(model, "model", found)
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    is_sparse = getattr(text, "is_moe", True)  # Doge states a number of experts in dense models, too
    counts = {name: getattr(text, name, None) for name in EXPERT_COUNTS if is_sparse}
    for name, count in counts.items():
        if not found and isinstance(count, int) and count > 1:
            raise ModelError(
                _UNREGISTERED.format(type(model).__name__, f"experts ({name}={count}) under unknown names")
            )
    return found


_UNREGISTERED = (
    "deepspeed: ZeRO-3 gathers the weights of experts as blocks, but {} has {}, so the ranks would wait for each other forever; "
    "pass deepspeed=zero2"
)


def _collect_blocks(module: torch.nn.Module, name: str, found: list[torch.nn.Module]) -> None:
    experts = [child for key, child in module.named_children() if _holds_experts(key, child)]
    if all(_runs(child) for child in experts):
        found += experts
        for key, child in module.named_children():
            if child not in experts:
                _collect_blocks(child, f"{name}.{key}", found)
    elif _runs(module):  # it calls the experts in a list one by one
        found.append(module)
    else:
        raise ModelError(_UNREGISTERED.format(f"{name} ({type(module).__name__})", "experts and no forward method"))


def _holds_experts(name: str, module: torch.nn.Module) -> bool:
    """Whether a module, with this name in its parent, holds experts, as transformers and others name them.

    Shared experts do not count: every token uses them.
    """
    named = "expert" in name.lower() or "expert" in type(module).__name__.lower()
    return named and "shared" not in name.lower() and any(True for _ in module.parameters())


def _runs(module: torch.nn.Module) -> bool:
    """Whether a module is called as a whole; a ModuleList is not, so nothing gathers its weights."""
    import torch

    return type(module).forward is not torch.nn.Module.forward
