"""Model specifications: any torch model, registered by name for `model=spec`, and what such a model must offer.

Shapes: B rows, T tokens, V vocabulary, K supervised positions, D documents.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from arctic_hydra.errors import DuplicateOption, did_you_mean
from arctic_hydra.files.extensions import BROKEN_EXTENSIONS, DISPUTED_OPTIONS
from arctic_hydra.human_numbers import convert_leaves

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig

    from arctic_hydra.distributed import World

Weights = dict[str, "torch.Tensor"]
"""Tensors by name."""
TokenLoss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Losses [K] from logits [K, V] and target ids [K]."""
F = TypeVar("F", bound=Callable[[], "ModelSpec"])


class LanguageModel(Protocol):
    """What `model=spec` needs of a model, which is a `torch.nn.Module`.

    Its config is a dataclass of plain values with at least `vocab_size` and `hidden_size`. The model must be causal.
    """

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits [B, T, V] for token ids [B, T], int64; rows are padded at their end.

        Further parameters are passed if the signature names them: `position_ids` (int64 [B, T], from 0 in each document), and
        for a packed row, else None, `cu_seqlens` (int32 [D + 1], bounds of its documents) and `max_seqlen` (int, tokens
        of the longest one).
        """

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding, with `vocab_size` rows."""

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the layer that projects to the vocabulary, or None if the model has no separate output layer."""


class StateDictAdapter(ABC):
    """Translates the weights of a spec's model to and from the layout of an architecture of transformers."""

    def __init__(self, config: Any) -> None:
        self.config = config
        """The config of the spec's model, with the vocabulary size of the weights."""

    @abstractmethod
    def hf_config(self) -> PretrainedConfig:
        """Return the config of the equivalent transformers model, as `AutoModelForCausalLM` builds it."""

    @abstractmethod
    def to_hf(self, state_dict: Weights) -> Weights:
        """Return the weights under the names and in the shapes of transformers; tied ones are the same tensor."""

    @abstractmethod
    def from_hf(self, state_dict: Weights) -> Weights:
        """Return the weights under the model's names; of tied ones, either side may be absent from both."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A kind of model. Only `model` is required."""

    model: Callable[[Any], nn.Module]
    """The class, called with a config. It initializes its weights, in fp32 on the CPU, from torch's seeded generator."""
    layer_class: type[nn.Module] | None = None
    """Class of the repeated layers, for activation checkpointing and `model.compile`."""
    loss: TokenLoss | None = None
    """Training loss of each position, [K], from logits [K, V] and target ids [K], for trainers of the supervised tokens (`sft`,
    `causal`); None: cross-entropy. Evaluation always reports cross-entropy."""
    parallelize: Callable[[nn.Module, World], nn.Module] | None = None
    """Called with the model and this rank's place, after the converters and before the optimizer; returns the model, whose
    parameters keep their names."""
    post_optimizer_build: Callable[[torch.optim.Optimizer, nn.Module], None] | None = None
    """Called with the optimizer and the model before the schedule and the engine are built."""
    state_dict_adapter: Callable[[Any], StateDictAdapter] | None = None
    """The subclass of StateDictAdapter, called with a config. With it, exports load with transformers, and `init_from` takes
    directories of transformers; without it, exports hold the model's own names and config."""


@dataclass(frozen=True)
class RegisteredSpec:
    """A spec as its package registered it; `create` imports the model's code."""

    name: str
    flavors: Mapping[str, Any]
    create: Callable[[], ModelSpec]

    def config(self, flavor: str, values: Mapping[str, Any]) -> Any:
        """Return the flavor's config with some of its values replaced; raises ValueError."""
        if flavor not in self.flavors:
            raise ValueError(
                f"flavor: got {flavor!r}, expected one of {', '.join(self.flavors)}{did_you_mean(flavor, self.flavors)}"
            )
        config = self.flavors[flavor]
        for name, value in convert_leaves(dict(values)).items():
            names = [field.name for field in dataclasses.fields(config)]
            if name not in names:
                raise ValueError(
                    f"config_kwargs.{name}: {type(config).__name__} has no such field; it has {', '.join(names)}{did_you_mean(name, names)}"
                )
            known = getattr(config, name)
            if isinstance(known, float) and type(value) is int:
                value = float(value)
            if known is not None and type(value) is not type(known):
                raise ValueError(
                    f"config_kwargs.{name}: got {value!r}, expected {_article(type(known).__name__)}, such as {known!r}"
                )
            config = dataclasses.replace(config, **{name: value})
        return config


_SPECS: dict[str, RegisteredSpec] = {}
_KEY = "model.spec"


def register_model_spec(name: str, flavors: Mapping[str, Any]) -> Callable[[F], F]:
    """Register a function without arguments that returns a ModelSpec, as `model=spec model.spec=<name>`.

    `flavors` are configs (instances of one dataclass) by name, the first is the default. The function imports the model's
    code, because configs compose without torch. Raises DuplicateOption for a name that is taken, and ValueError for configs
    that do not qualify.
    """
    if name in _SPECS:
        raise DuplicateOption(
            f"model.spec={name} is already registered by {_SPECS[name].create.__module__}; choose another name",
            (_KEY, name),
        )
    if not flavors:
        raise ValueError(
            f"model.spec={name}: got no flavors, expected at least one config, such as {{'small': MyConfig()}}"
        )
    for flavor, config in flavors.items():
        if not dataclasses.is_dataclass(config) or isinstance(config, type):
            raise ValueError(f"model.spec={name}: flavor {flavor!r} is {config!r}, expected an instance of a dataclass")
        missing = [key for key in ("vocab_size", "hidden_size") if type(getattr(config, key, None)) is not int]
        if missing:
            raise ValueError(
                f"model.spec={name}: flavor {flavor!r} ({type(config).__name__}) lacks {' and '.join(missing)}, expected int fields"
            )
        if problem := _not_plain(config):
            raise ValueError(
                f"model.spec={name}: {problem} of flavor {flavor!r} is not a plain value; expected numbers, texts, lists or "
                "dictionaries, which config.json can hold"
            )

    def register(create: F) -> F:
        _SPECS[name] = RegisteredSpec(name, dict(flavors), create)
        return create

    return register


def _not_plain(config: Any) -> str:
    """Return the name of the first field that JSON does not keep as it is; empty if there is none."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        try:
            if json.loads(json.dumps(value)) != value:
                return field.name
        except TypeError:
            return field.name
    return ""


def registered_specs() -> list[RegisteredSpec]:
    """Return all registered specs."""
    return list(_SPECS.values())


def registered_spec(name: str) -> RegisteredSpec:
    """Return the spec that is registered under exactly this name; raises ValueError."""
    if dispute := DISPUTED_OPTIONS.get((_KEY, name)):
        raise ValueError(f"spec: got {name!r}, a name that two models are to have, and {dispute}")
    if name in _SPECS:
        return _SPECS[name]
    broken = "".join(f"; {problem}" for problem in BROKEN_EXTENSIONS.values())
    if not _SPECS:
        raise ValueError(
            f"spec: got {name!r}, but no model is registered; a package registers one with register_model_spec and declares "
            f"the entry point group arctic_hydra, or a file does, which code=<path> names{broken}"
        )
    hint = did_you_mean(name, _SPECS) or broken
    raise ValueError(f"spec: got {name!r}, expected one of {', '.join(sorted(_SPECS))}{hint}")


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
