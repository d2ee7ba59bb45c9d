"""Muon for the hidden matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from arctic_hydra.component import component
from arctic_hydra.distributed import whole_shape
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number
from arctic_hydra.optimizer.base import AdamFactory
from arctic_hydra.optimizer.deepspeed_ops import optimizer_class

if TYPE_CHECKING:
    import torch

_DEEPSPEED_STEPS = 5
_TOKEN_ROWS = "trainable_tokens_delta"
"""Part of the parameter names of single embedding rows that peft trains."""


@component(group="optimizer", name="muon")
class MuonFactory(AdamFactory):
    """Muon (Jordan et al. 2024: momentum, orthogonalized by Newton-Schulz) on hidden matrices, AdamW on everything else:
    embeddings, the head, single rows of these, norms and biases."""

    lr: HumanFloat = number(1e-3, minimum=0)
    """Peak learning rate of the matrices, each scaled by sqrt(max(1, rows / columns)), per optimizer step."""
    momentum: HumanFloat = number(0.95, minimum=0, maximum=1)
    """Decay rate of the matrices' momentum."""
    nesterov: bool = True
    """Use Nesterov momentum."""
    ns_steps: HumanInt = integer(_DEEPSPEED_STEPS, minimum=1, maximum=99)
    """Newton-Schulz iterations."""
    adam_lr: HumanFloat = number(5e-4, minimum=0)
    """Peak learning rate of the parameters that AdamW updates."""

    def engine_problems(self, stage: int, dtype: str, clipping: float) -> Iterator[str]:
        """Yield the settings of Muon that this engine would silently ignore or change."""
        if stage == 0:
            if dtype != "fp32":
                yield (
                    f"optimizer: got muon, but with model.dtype={dtype} DeepSpeed flattens the matrices at ZeRO-0, so they "
                    f"cannot be orthogonalized; pass deepspeed=zero1"
                )
            return
        if not self.nesterov:
            yield "optimizer.nesterov: got false, but DeepSpeed's Muon (ZeRO 1 to 3) always uses it; pass optimizer.nesterov=true"
        if self.ns_steps != _DEEPSPEED_STEPS:
            yield (
                f"optimizer.ns_steps: got {self.ns_steps}, but DeepSpeed's Muon (ZeRO 1 to 3) always takes {_DEEPSPEED_STEPS}; "
                f"pass optimizer.ns_steps={_DEEPSPEED_STEPS}"
            )
        if clipping:
            yield (
                f"optimizer: got muon, but deepspeed.gradient_clipping={clipping:g} clips the orthogonalized updates from ZeRO-1 "
                f"on, not the gradients; pass deepspeed.gradient_clipping=0"
            )

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return torch's Muon and AdamW as one optimizer, or DeepSpeed's if ZeRO shards the state."""
        groups = list(self._groups(model))
        if self.trainer.zero_stage == 0:
            from arctic_hydra.optimizer.muon_adamw import MuonAdamW

            return MuonAdamW(groups)
        for group in groups:
            for parameter in group["params"]:
                parameter.use_muon = group["use_muon"]
            if group["use_muon"]:
                group["ns_method"] = "standard"  # torch's iteration, in bf16 as in torch
        return optimizer_class("MuonWithAuxAdam")(groups)  # type: ignore[call-arg]

    def _groups(self, model: Any) -> Iterator[dict[str, Any]]:
        """Split each parameter group into one for Muon and one for AdamW."""
        ends = _embeddings_and_head(model)
        for group in self.parameter_groups(model, 1.0, self.weight_decay):
            muon: list[Any] = []
            adam: list[Any] = []
            for parameter in group["params"]:
                matrix = len(whole_shape(parameter)) == 2 and id(parameter) not in ends
                (muon if matrix else adam).append(parameter)
            if muon:
                settings = {"lr": self.lr * group["lr"], "momentum": self.momentum}
                settings |= (
                    {"nesterov": self.nesterov, "ns_steps": self.ns_steps} if self.trainer.zero_stage == 0 else {}
                )
                yield {**group, "params": muon, "use_muon": True, **settings}
            if adam:
                yield {**group, "params": adam, "use_muon": False, **self.arguments(), "lr": self.adam_lr * group["lr"]}


def _embeddings_and_head(model: Any) -> set[int]:
    """Return the ids of the parameters of all embeddings and of the head, also one of scores, which AdamW updates.

    These include what peft wraps around them, and the rows of single tokens that it trains.
    """
    import torch

    parts = [model.get_input_embeddings(), model.get_output_embeddings(), getattr(model, "score", None)]
    parts += [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    ends = {id(parameter) for part in parts if part is not None for parameter in part.parameters()}
    return ends | {id(parameter) for name, parameter in model.named_parameters() if _TOKEN_ROWS in name}
