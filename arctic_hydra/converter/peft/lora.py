"""LoRA and its variants: low-rank updates of linear layers."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from typing import Any

from arctic_hydra.component import component
from arctic_hydra.converter.peft.base import PeftFactory
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number


class Bias(Enum):
    """Which biases train."""

    none = "none"
    all = "all"
    lora_only = "lora_only"


@component(group="peft", name="lora")
class LoraFactory(PeftFactory):
    """LoRA (Hu et al. 2021): the frozen weight W of a layer becomes W + lora_alpha / r * B A with trained B and A.

    Fields have peft's names and meaning; `peft=dora` and `peft=rslora` set one of them.
    """

    r: HumanInt = integer(16, minimum=1, maximum=1_000_000)
    """Rank of the update."""
    lora_alpha: HumanFloat = number(32, minimum=0)
    """Scale of the update, divided by r (by its square root with use_rslora)."""
    lora_dropout: HumanFloat = number(0.0, minimum=0, maximum=1)
    """Dropout before A, in training."""
    target_modules: Any = "all-linear"
    """Layers to adapt: `all-linear` (all but the head), a list of names such as [q_proj,v_proj], or a pattern of whole names."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules that train in full and are saved with the adapter, such as [embed_tokens,lm_head]."""
    bias: Bias = Bias.none
    """none, all, or lora_only: which biases train."""
    use_rslora: bool = False
    """Divide lora_alpha by the square root of r (rank-stabilized LoRA, Kalajdzievski 2023)."""
    use_dora: bool = False
    """Train the magnitude of each output separately from its direction (DoRA, Liu et al. 2024)."""
    init_lora_weights: Any = True
    """true: B is zero; or gaussian, pissa, pissa_niter_<n>, olora, orthogonal, as in peft."""

    def validate(self) -> None:
        super().validate()
        own = sorted(self.config.keys() & {*vars(self)} - {"config"})
        if own:
            raise ValueError(f"config.{own[0]}: this option has the field itself; pass peft.{own[0]}=... instead")
        target = self.target_modules
        if not ((isinstance(target, str) and target) or (isinstance(target, list) and target)):
            raise ValueError(f"target_modules: got {target!r}, expected all-linear, a list of names, or a pattern")
        if not isinstance(self.init_lora_weights, bool | str):
            raise ValueError(f"init_lora_weights: got {self.init_lora_weights!r}, expected true or a method's name")
        if str(self.init_lora_weights).startswith(("eva", "loftq", "corda", "lora_ga")):
            raise ValueError(
                f"init_lora_weights: got {self.init_lora_weights}, which needs data or another model for initialization; "
                "expected true, gaussian, pissa, pissa_niter_<n>, olora or orthogonal"
            )

    @property
    def type_name(self) -> str:
        """peft's name for the type."""
        return "LORA"

    def values(self) -> dict[str, Any]:
        """Return the values of `peft.LoraConfig`."""
        alpha = int(self.lora_alpha) if float(self.lora_alpha).is_integer() else self.lora_alpha
        return {
            "r": self.r,
            "lora_alpha": alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": self.target_modules,
            "modules_to_save": self.modules_to_save or None,
            "bias": self.bias.value,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "init_lora_weights": self.init_lora_weights,
            **self.config,
        }
