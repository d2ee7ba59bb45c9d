"""Base of the optimizer factories: parameter groups and the fields of Adam."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import Component
from arctic_hydra.distributed import whole_shape
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import HumanFloat, convert_leaves, number
from arctic_hydra.patterns import check_patterns, matching

if TYPE_CHECKING:
    import torch

_LAYER = re.compile(r"\.(?:layers|layer|blocks|block|h)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?<!un)embed(?!_out)|\.wte\.|\.wpe\.")  # GPT-NeoX calls its head embed_out
_GROUP_KEYS = ("patterns", "lr_scale", "weight_decay")


@dataclass(kw_only=True)
class OptimizerFactory(Component):
    """Base of the optimizer factories; patterns are regular expressions that are searched for in parameter names."""

    no_decay: list[str] = field(default_factory=list)
    """Patterns of weights without weight decay, such as [embed_tokens]; biases and norms are never decayed."""
    groups: dict[str, Any] = field(default_factory=dict)
    """Named parameter groups: {head: {patterns: [lm_head], lr_scale: 0.1, weight_decay: 0}}; lr_scale multiplies the
    learning rate throughout the schedule. A parameter may be in one group only."""
    layerwise_lr_decay: Any = number(1.0, minimum=0, maximum=1)
    """Learning rate multiplier per layer, from the top layer downwards; the embedding is below the first layer, the head
    and the last norm are above the last. 1 disables."""

    @property
    def peak_lr(self) -> float | None:
        """Peak learning rate shown in the header: the field `lr`, if the option has one."""
        return self.__dict__.get("lr")

    def validate(self) -> None:
        if not self.layerwise_lr_decay:
            raise ValueError(
                "layerwise_lr_decay: got 0, expected more than 0; to freeze the lower layers, use converter=[freeze]"
            )
        check_patterns("no_decay", self.no_decay)
        self.groups = convert_leaves(self.groups)
        for name, group in self.groups.items():
            key = f"groups.{name}"
            if not isinstance(group, dict) or not group.get("patterns") or len(group) < 2:
                raise ValueError(
                    f"{key}: got {group!r}, expected patterns with lr_scale or weight_decay, such as "
                    "{patterns: [lm_head], lr_scale: 0.1}"
                )
            for unknown in group.keys() - set(_GROUP_KEYS):
                raise ValueError(f"{key}.{unknown}: there is no such key; a group has {', '.join(_GROUP_KEYS)}")
            if not isinstance(group["patterns"], list):
                raise ValueError(f"{key}.patterns: got {group['patterns']!r}, expected a list of patterns")
            check_patterns(f"{key}.patterns", group["patterns"])
            for value in ("lr_scale", "weight_decay"):
                given = group.get(value, 0.0)
                if isinstance(given, bool) or not isinstance(given, int | float) or given < 0:
                    raise ValueError(f"{key}.{value}: got {given!r}, expected a number of 0 or more")

    state_bytes_per_parameter: ClassVar[int] = 8
    """Bytes of optimizer state per trained parameter, without the master copy of the weights (Adam: two fp32 moments)."""

    runs_on_cpu: ClassVar[bool] = False
    """Whether it can update parameters on the CPU while the model is on a GPU, as offloading requires."""
    needs_offload: ClassVar[bool] = False
    """Whether it updates parameters on the CPU only, so that a machine with GPUs needs optimizer offloading."""

    @abstractmethod
    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer over the trainable parameters of `model`; raises ConfigError if there are none."""

    def engine_problems(self, stage: int, dtype: str, clipping: float) -> Iterator[str]:
        """Yield, with full config keys, why this optimizer does not support a ZeRO stage, a dtype or gradient clipping."""
        return iter(())

    def parameter_groups(self, model: torch.nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return torch's parameter groups of the trainable parameters, each with its `lr` and `weight_decay`.

        Groups with the unscaled learning rate come first, so that the logged rate is that of `lr`. Raises ConfigError if
        nothing trains, and for patterns that match nothing or the same parameter twice.
        """
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ConfigError("optimizer: the model has no trainable parameter; unfreeze some")
        scales = self._layer_scales(list(trainable))
        decays = {name: weight_decay if is_matrix(p) else 0.0 for name, p in trainable.items()}
        for name in matching("optimizer.no_decay", self.no_decay, trainable):
            decays[name] = 0.0
        for name, group in self._members(list(trainable)).items():
            scales[name] *= self.groups[group].get("lr_scale", 1.0)
            decays[name] = self.groups[group].get("weight_decay", decays[name])
        found: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in trainable.items():
            found.setdefault((scales[name], decays[name]), []).append(parameter)
        # Sorted, so that the order does not depend on which parameter a model lists first.
        order = sorted(found, key=lambda key: (key[0] != 1.0, -key[0], -key[1]))
        return [{"params": found[key], "lr": lr * key[0], "weight_decay": key[1]} for key in order]

    def _members(self, names: list[str]) -> dict[str, str]:
        """Return the group of each parameter that belongs to one."""
        members: dict[str, str] = {}
        for group, values in self.groups.items():
            for name in matching(f"optimizer.groups.{group}.patterns", values["patterns"], names):
                if name in members:
                    raise ConfigError(
                        f"optimizer.groups.{group}.patterns: {name} is also in optimizer.groups.{members[name]}; "
                        "make the patterns exclude each other"
                    )
                members[name] = group
        return members

    def _layer_scales(self, names: list[str]) -> dict[str, float]:
        """Return layerwise_lr_decay to the power of each parameter's distance from the top (Clark et al. 2020)."""
        decay = float(self.layerwise_lr_decay)
        layers = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
        if decay == 1.0:
            return dict.fromkeys(names, 1.0)
        if not layers:
            raise ConfigError(
                f"optimizer.layerwise_lr_decay: got {decay}, but no trainable parameter lies in a numbered layer "
                f"(got names such as {', '.join(names[:3])}); use optimizer.groups"
            )
        top = max(layers.values()) + 1
        depths = {name: layers.get(name, -1 if _EMBEDDING.search(name) else top) for name in names}
        return {name: decay ** (top - depth) for name, depth in depths.items()}


@dataclass(kw_only=True)
class AdamFactory(OptimizerFactory):
    """Fields that all Adam variants share."""

    lr: HumanFloat = number(5e-4, minimum=0)
    """Peak learning rate, per optimizer step."""
    weight_decay: HumanFloat = number(0.1, minimum=0)
    """Decoupled decay, on weights of two dimensions and more; biases and norms are never decayed."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of the two moments, each in [0, 1)."""
    eps: HumanFloat = number(1e-8, minimum=0)
    """Added to the denominator."""

    def validate(self) -> None:
        super().validate()
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)!r}, expected two numbers in [0, 1)")

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments common to all implementations."""
        return {"lr": self.lr, "betas": tuple(self.betas), "eps": self.eps}


def is_matrix(parameter: torch.nn.Parameter) -> bool:
    """Whether a parameter has two or more dimensions."""
    return len(whole_shape(parameter)) >= 2
