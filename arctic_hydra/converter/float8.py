"""Float8 matrix products, through torchao."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field, replace
from types import MethodType
from typing import TYPE_CHECKING

from arctic_hydra.component import choice, component
from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.distributed import count_gpus
from arctic_hydra.errors import ConfigError
from arctic_hydra.patterns import check_patterns, matching

if TYPE_CHECKING:
    import torch

_RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
_MULTIPLE = 16
"""The float8 kernels need both sizes of a matrix to be multiples of this."""


@component(group="converter", name="float8")
class Float8Converter(ModelConverter):
    """Linear layers multiply in float8 with dynamic scaling (torchao); weights and optimizer state keep their dtype.

    Needs a GPU of compute capability 8.9 (Ada) or higher, unless emulated.
    """

    recipe: str = choice("tensorwise", _RECIPES)
    """tensorwise, rowwise or rowwise_with_gw_hp: granularity of the scales, from fastest to most exact."""
    exclude: list[str] = field(default_factory=lambda: ["lm_head"])
    """Patterns of linear layers to leave unchanged."""
    emulate: bool = False
    """Round to float8 but multiply in the model's dtype, on any device: slow, but shows the effect of float8 on a loss."""

    def validate(self) -> None:
        if self.recipe not in _RECIPES:
            raise ValueError(f"recipe: got {self.recipe!r}, expected one of {', '.join(_RECIPES)}")
        check_patterns("exclude", self.exclude)

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if torchao or a GPU is missing; `convert` checks whether the GPU supports float8."""
        if importlib.util.find_spec("torchao") is None:
            yield "recipe: converter=[float8] needs torchao, which is not installed; pip install torchao, or leave float8 out"
        if count_gpus() == 0 and not self.emulate:
            yield (
                "recipe: converter=[float8] needs a CUDA GPU, and this machine has none; leave float8 out, or pass "
                "converter.float8.emulate=true to study its rounding"
            )

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Replace linear layers in place; raises ConfigError for a GPU that does not support float8."""
        import torch
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        if not self.emulate and torch.cuda.get_device_capability() < (8, 9):
            raise ConfigError(
                f"converter.float8: {torch.cuda.get_device_name()} does not support float8 (compute capability 8.9 or higher); leave it out"
            )
        # Not its subclasses: quantized layers, for example, have their own product.
        linear = {name: m for name, m in model.named_modules() if type(m) is torch.nn.Linear}
        excluded = matching("converter.float8.exclude", self.exclude, linear)

        def wanted(module: torch.nn.Module, name: str) -> bool:
            sizes = (getattr(module, "in_features", 1), getattr(module, "out_features", 1))
            return name in linear and name not in excluded and all(size % _MULTIPLE == 0 for size in sizes)

        if not any(wanted(module, name) for name, module in linear.items()):
            raise ConfigError(
                f"converter.float8: {type(model).__name__} has no linear layer to convert; expected one whose sizes are multiples of "
                f"{_MULTIPLE} outside converter.float8.exclude={self.exclude}; leave float8 out"
            )
        # The inner dimension of the weight gradient's product is the number of tokens, which padding makes a multiple.
        recipe = Float8LinearConfig.from_recipe_name(self.recipe)
        config = replace(recipe, emulate=self.emulate, pad_inner_dim=True)
        return convert_to_float8_training(model, module_filter_fn=wanted, config=config)  # type: ignore[no-any-return]

    @contextmanager
    def without_rounding(self, model: torch.nn.Module) -> Iterator[None]:
        """Multiply in the model's dtype within this context: tokens share a scale, so each depends on all others."""
        import torch
        from torchao.float8.float8_linear import Float8Linear

        layers = [module for module in model.modules() if isinstance(module, Float8Linear)]
        for layer in layers:
            layer.forward = MethodType(torch.nn.Linear.forward, layer)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward
