"""Tiled MLP (Bekman et al. 2025, ALST): the MLP processes the tokens of a row in tiles, which are recomputed in turn.

The wide intermediate activations exist for one tile at a time. DeepSpeed's TiledMLP fails for rows with fewer tokens than
tiles, and supports one form of MLP; torch's checkpointing per tile works for any MLP without interaction between tokens, and
autograd passes each weight's gradient to ZeRO once.

Shapes: B rows, T tokens, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from arctic_hydra.component import component
from arctic_hydra.converter.base import ModelConverter
from arctic_hydra.errors import ModelError
from arctic_hydra.human_numbers import HumanInt, integer

if TYPE_CHECKING:
    import torch

GATED = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})


@component(group="converter", name="tiled_mlp")
class TiledMLP(ModelConverter):
    """Every gated MLP of the model processes its tokens in tiles."""

    tiles: HumanInt = integer(8, minimum=2, maximum=1_000_000)
    """Tiles per row; the same on every rank, so that ZeRO-3 gathers weights equally often."""

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap the forward of each gated MLP of this model only; raises ModelError if there is none."""
        found = [module for module in model.modules() if _is_gated_mlp(module)]
        if not found:
            raise ModelError(
                f"trainer.tiled_mlp_compute: {type(model).__name__} has no MLP with gate_proj, up_proj and down_proj (or "
                f"gate_up_proj and down_proj) to tile; leave the option out (also as converter=[tiled_mlp])"
            )
        for module in found:
            module.forward = functools.partial(_tiled, module.forward, self.tiles)
        return model


def _is_gated_mlp(module: torch.nn.Module) -> bool:
    names = {name for name, _ in module.named_children()}
    return any(needed <= names for needed in GATED)


def _tiled(forward: Callable[[torch.Tensor], torch.Tensor], tiles: int, x_BTC: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.utils.checkpoint import checkpoint

    parts = torch.tensor_split(x_BTC, tiles, dim=-2)  # empty ones at the end of short rows
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(forward, part, use_reentrant=False) for part in parts], dim=-2)
    return torch.cat([forward(part) for part in parts], dim=-2)
