"""A registered model in the form of a transformers model, which converters, trainers and exports work with.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from arctic_hydra.errors import ModelError
from arctic_hydra.model.layers import mark_layer
from arctic_hydra.model.names import SPEC_MODEL_TYPE
from arctic_hydra.model.registry import LanguageModel, ModelSpec, StateDictAdapter, TokenLoss, Weights

PREFIX = "model."
"""Prefix of the names of all weights: the registered model is the attribute `model`."""
OPTIONAL_INPUTS = ("position_ids", "cu_seqlens", "max_seqlen")
_SPECIAL_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")


class SpecConfig(PretrainedConfig):
    """The config of a registered model: its own values, and those that every language model has."""

    model_type = SPEC_MODEL_TYPE
    spec: str = ""
    flavor: str = ""
    values: dict[str, Any] | None = None
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    tie_word_embeddings: bool = False


class SpecModel(PreTrainedModel, GenerationMixin):
    """A registered model, as the attribute `model`, behind the interface of transformers.

    `adapter` creates the state-dict adapter for a vocabulary size; None without one.
    """

    config_class = SpecConfig

    def __init__(
        self, config: SpecConfig, model: nn.Module, spec: ModelSpec, adapter: Callable[[int], StateDictAdapter] | None
    ) -> None:
        super().__init__(config)
        self.model = model
        self._spec = spec
        self._adapter = adapter
        self._accepted = accepted_inputs(model)
        self._layers = layers_of(model, spec)
        self.supports_gradient_checkpointing = bool(self._layers)
        self._is_tied = is_tied(self._own)
        config.tie_word_embeddings = self._is_tied
        for layer in self._layers:
            mark_layer(layer)

    @property
    def token_loss(self) -> TokenLoss | None:
        """The spec's training loss of each position; None for cross-entropy."""
        return self._spec.loss

    @property
    def _own(self) -> LanguageModel:
        return cast(LanguageModel, self.model)

    @property
    def model_name(self) -> str:
        """Name of the registered model's class."""
        return type(self.model).__name__

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self._own.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the layer that projects to the vocabulary, if there is one."""
        return self._own.get_output_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token embedding in the place of the present one."""
        _replace(self.model, self.get_input_embeddings(), value)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another output layer in the place of the present one."""
        _replace(self.model, self.get_output_embeddings(), new_embeddings)

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Share the embedding's weight with the output layer, if the registered model does."""
        if self._is_tied:
            cast(Any, self.get_output_embeddings()).weight = self.get_input_embeddings().weight

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute the activations of each layer in the backward pass."""
        for layer in self._layers:
            layer.gradient_checkpointing = True  # type: ignore[assignment]
            layer._gradient_checkpointing_func = partial(checkpoint, **(gradient_checkpointing_kwargs or {}))  # type: ignore[assignment]
            layer.forward = partial(_recomputed, layer, layer.forward)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        max_length_q: int | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Return the registered model's logits; cache and labels are ignored. Raises ModelError for rows padded at their start."""
        if attention_mask is not None and not bool(attention_mask[..., 0].all()):
            raise ModelError(
                f"{self.model_name} gets no attention mask, so rows may be padded at their end only; pass one prompt at a time, or "
                "prompts of one length"
            )
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        inputs = {"position_ids": position_ids, "cu_seqlens": cu_seq_lens_q, "max_seqlen": max_length_q}
        return CausalLMOutput(logits=self.model(input_ids, **{name: inputs[name] for name in self._accepted}))

    def from_export(self, weights: Weights) -> Weights:
        """Return the weights of an export, or of a transformers model if there is an adapter, by the names of this model."""
        if self._adapter is not None:
            weights = self._adapter(self.config.vocab_size).from_hf(weights)
        return {PREFIX + name: value for name, value in weights.items()}

    def save_pretrained(
        self,
        save_directory: Any,
        *_: Any,
        state_dict: Weights | None = None,
        max_shard_size: int | str = "50GB",
        **__: Any,
    ) -> None:
        """Write weights, config and generation config: in the layout of transformers with an adapter, else in the model's own."""
        weights = self.state_dict() if state_dict is None else state_dict
        weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
        config: PretrainedConfig = self.config
        if self._adapter is not None:
            adapter = self._adapter(self.config.vocab_size)
            weights, config = adapter.to_hf(weights), adapter.hf_config()
            _set_special_tokens(config, self.config)
            config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
        else:
            config.architectures = [self.model_name]
            config.values = {**(config.values or {}), "vocab_size": self.config.vocab_size}
        config.dtype = self.dtype
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        kept = {name: _alone(value) for name, value in without_duplicates(weights).items()}
        save_torch_state_dict(kept, save_directory, max_shard_size=max_shard_size, metadata={"format": "pt"})
        config.save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)


def _alone(value: torch.Tensor) -> torch.Tensor:
    """Return the tensor in a memory of its own: a file of safetensors cannot hold views, as of the parts of a fused projection."""
    value = value.contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _recomputed(layer: Any, forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    if not (layer.gradient_checkpointing and layer.training and torch.is_grad_enabled()):
        return forward(*given, **named)
    return layer._gradient_checkpointing_func(partial(forward, **named), *given)


def _set_special_tokens(config: PretrainedConfig, source: PretrainedConfig) -> None:
    """Copy the special tokens; a config whose class takes a single stop token only gets the first."""
    for name in _SPECIAL_TOKENS:
        value = getattr(source, name, None)
        for accepted in (value, *value[:1]) if isinstance(value, list) else (value,):
            try:
                setattr(config, name, accepted)
            except StrictDataclassError:
                continue
            break


def _replace(model: nn.Module, old: nn.Module | None, new: nn.Module) -> None:
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def is_tied(model: LanguageModel) -> bool:
    """Whether embedding and output layer share one weight."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def layers_of(model: nn.Module, spec: ModelSpec) -> list[Any]:
    """Return the repeated layers of a registered model, in order."""
    return [m for m in model.modules() if spec.layer_class is not None and isinstance(m, spec.layer_class)]


def accepted_inputs(model: nn.Module) -> tuple[str, ...]:
    """Return the optional inputs that the model's forward takes."""
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return tuple(name for name in OPTIONAL_INPUTS if takes_all or name in parameters)


def structure_problems(model: Any, config: Any, spec: ModelSpec) -> Iterator[str]:
    """Yield every requirement of `LanguageModel` that the model does not meet, apart from those on the outputs of its forward."""
    if not isinstance(model, nn.Module):
        yield f"is a {type(model).__name__}, expected a torch.nn.Module"
        return
    yield from _forward_problems(model)
    modules, vocabulary = set(model.modules()), config.vocab_size
    for name, kind, size, optional in (
        ("get_input_embeddings", nn.Embedding, "num_embeddings", False),
        ("get_output_embeddings", nn.Linear, "out_features", True),
    ):
        wanted = f"the model's nn.{kind.__name__} with vocab_size={vocabulary} rows{' or None' if optional else ''}"
        if not callable(getattr(model, name, None)):
            yield f"has no method {name}(), which returns {wanted}"
            continue
        found = getattr(model, name)()
        if found is None and optional:
            continue
        if not isinstance(found, kind) or found not in modules or getattr(found, size) != vocabulary:
            yield f"{name}() returns {found!r}, expected {wanted}"
    if scalars := sorted(name for name, parameter in model.named_parameters() if not parameter.dim()):
        yield f"{scalars[0]} is a parameter without dimensions, which DeepSpeed cannot send to other ranks; expected torch.zeros(1)"
    if mixing := sorted(name for name, module in model.named_modules() if isinstance(module, _BatchNorm)):
        yield (
            f"{mixing[0]} averages over all tokens of a batch in training, also later ones and those of other documents; expected a norm "
            "of single tokens, such as nn.LayerNorm or nn.RMSNorm"
        )
    if spec.layer_class is not None and not layers_of(model, spec):
        yield f"has no layer of the spec's layer_class, {spec.layer_class.__name__}"


def _forward_problems(model: nn.Module) -> Iterator[str]:
    parameters = inspect.signature(model.forward).parameters
    if type(model).forward is nn.Module.forward:
        yield "has no method forward(input_ids), which returns logits [B, T, V]"
        return
    names = list(parameters)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not names or parameters[names[0]].kind not in (*positional, inspect.Parameter.VAR_POSITIONAL):
        yield "forward() takes no token ids, expected forward(input_ids)"
    others = [
        name
        for name in names[1:]
        if parameters[name].default is inspect.Parameter.empty
        and parameters[name].kind in (*positional, inspect.Parameter.KEYWORD_ONLY)
        and name not in OPTIONAL_INPUTS
    ]
    if others:
        yield f"forward() requires {', '.join(others)}, expected input_ids and optionally {', '.join(OPTIONAL_INPUTS)}"


def output_problems(model: SpecModel) -> Iterator[str]:
    """Yield what is wrong with the result of the model's forward, for a packed row of two documents; on fake tensors."""
    tokens, vocabulary = 8, model.config.vocab_size
    positions = torch.arange(tokens) % (tokens // 2)
    bounds = torch.tensor([0, tokens // 2, tokens], dtype=torch.int32)
    with torch.no_grad():
        logits: Any = model(torch.zeros(1, tokens, dtype=torch.int64), positions[None], bounds, tokens // 2).logits
    wanted = f"logits of shape [B, T, V], here [1, {tokens}, {vocabulary}]"
    if not isinstance(logits, torch.Tensor):
        yield f"forward() returns a {type(logits).__name__}, expected {wanted}"
    elif tuple(logits.shape) != (1, tokens, vocabulary):
        yield f"forward() returns a tensor of shape {list(logits.shape)}, expected {wanted}"


def adapter_problems(model: SpecModel) -> Iterator[str]:
    """Yield what keeps an export in the layout of transformers from loading; on fake or real weights."""
    if model._adapter is None:
        return
    adapter, own = model._adapter(model.config.vocab_size), shapes(model.model.state_dict())
    name = f"state_dict_adapter {type(adapter).__name__}"
    config = adapter.hf_config()
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    exported = adapter.to_hf(dict(model.model.state_dict()))
    yield from _differences(f"{name}: to_hf()", shapes(exported), shapes(theirs.state_dict()), type(theirs).__name__)
    back = shapes(adapter.from_hf(without_duplicates(exported)))
    tied = own.keys() - without_duplicates(model.model.state_dict()).keys()
    yield from _differences(f"{name}: from_hf(to_hf())", {n: own[n] for n in tied} | back, own, model.model_name)


def without_duplicates(weights: Weights) -> Weights:
    """Return each tensor once, under the first of its names, as files of safetensors require."""
    found: dict[Any, str] = {}
    for name, value in weights.items():
        found.setdefault((value.untyped_storage()._cdata, value.storage_offset(), value.shape), name)
    return {name: weights[name] for name in found.values()}


def shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name."""
    return {name: tuple(value.shape) for name, value in weights.items()}


def _differences(what: str, got: dict[str, Any], wanted: dict[str, Any], owner: str) -> Iterator[str]:
    for label, names in (
        (f"lacks weights of {owner}", wanted.keys() - got.keys()),
        (f"has weights that {owner} does not have", got.keys() - wanted.keys()),
        (
            f"has weights in other shapes than {owner}",
            {n for n in got.keys() & wanted.keys() if got[n] != wanted[n]},
        ),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"{what} {label}: {', '.join(sorted(names)[:3])}{more}"


def missing_names(model: Any) -> list[str]:
    """Return the attributes required by converters, trainer and exports that a model from outside transformers does not have."""
    config = getattr(model, "config", None)
    found = [name for name in ("get_input_embeddings", "get_output_embeddings", "config") if not hasattr(model, name)]
    if config is None:
        return found
    if not hasattr(config, "get_text_config"):
        return [*found, "config.get_text_config()"]
    text = config.get_text_config()
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers")
    return found + [f"config.{name}" for name in sizes if not hasattr(text, name)]
