"""Muon for the hidden matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from arctic_hydra.component import component
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number
from arctic_hydra.optimizer.base import AdamFactory
from arctic_hydra.optimizer.deepspeed_ops import optimizer_class

if TYPE_CHECKING:
    import torch

_DEEPSPEED_STEPS = 5
_TOKEN_ROWS = "trainable_tokens_delta"
"""Part of the names that peft gives to rows of an embedding which train by themselves."""


@component(group="optimizer", name="muon")
class MuonFactory(AdamFactory):
    """Muon (Jordan et al. 2024: momentum, orthogonalised by Newton-Schulz) on weights with two dimensions between the
    embeddings and the head; AdamW on these, on single rows of theirs, on norms and biases."""

    lr: HumanFloat = number(1e-3, minimum=0)
    """Peak learning rate of the matrices, scaled by sqrt(max(1, rows / columns)) of each; per optimizer step."""
    momentum: HumanFloat = number(0.95, minimum=0, maximum=1)
    """Decay rate of the matrices' momentum."""
    nesterov: bool = True
    """Look one step ahead along the momentum."""
    ns_steps: HumanInt = integer(_DEEPSPEED_STEPS, minimum=1, maximum=99)
    """Newton-Schulz iterations."""
    adam_lr: HumanFloat = number(5e-4, minimum=0)
    """Peak learning rate of AdamW's part."""

    def engine_problems(self, stage: int, dtype: str, clipping: float) -> Iterator[str]:
        """Yield what this engine would do to Muon in silence."""
        if stage == 0:
            if dtype != "fp32":
                yield (
                    f"optimizer: got muon, but with model.dtype={dtype} DeepSpeed flattens the matrices at ZeRO-0, where nothing "
                    f"orthogonalises them; pass deepspeed=zero1"
                )
            return
        if not self.nesterov:
            yield "optimizer.nesterov: got false, but DeepSpeed's Muon (ZeRO 1 to 3) has it always; pass optimizer.nesterov=true"
        if self.ns_steps != _DEEPSPEED_STEPS:
            yield f"optimizer.ns_steps: got {self.ns_steps}, but DeepSpeed's Muon (ZeRO 1 to 3) takes {_DEEPSPEED_STEPS}; leave it there"
        if clipping:
            yield (
                f"optimizer: got muon, but deepspeed.gradient_clipping={clipping:g} would clip the orthogonalised updates from ZeRO-1 "
                f"on, not the gradients; pass deepspeed.gradient_clipping=0"
            )

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return torch's Muon and AdamW as one optimizer, or DeepSpeed's where ZeRO shards the state."""
        groups = list(self._groups(model))
        if self.trainer.zero_stage == 0:
            from arctic_hydra.optimizer.muon_adamw import MuonAdamW

            return MuonAdamW(groups)
        for group in groups:
            for parameter in group["params"]:
                parameter.use_muon = group["use_muon"]
            if group["use_muon"]:
                group["ns_method"] = "standard"  # torch's iteration, in bf16 as there
        return optimizer_class("MuonWithAuxAdam")(groups)  # type: ignore[call-arg]

    def _groups(self, model: Any) -> Iterator[dict[str, Any]]:
        """Split each parameter group into what Muon and what AdamW takes."""
        ends = _embeddings_and_head(model)
        for group in self.parameter_groups(model, 1.0, self.weight_decay):
            muon: list[Any] = []
            adam: list[Any] = []
            for parameter in group["params"]:
                matrix = len(getattr(parameter, "ds_shape", parameter.shape)) == 2 and id(parameter) not in ends
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
    """Return the ids of the parameters whose rows are looked up, or are classes: they map no vectors to vectors.

    Those of tokens, positions and the head, what peft puts around them, and its rows of single tokens.
    """
    import torch

    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    parts += [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    ends = {id(parameter) for part in parts if part is not None for parameter in part.parameters()}
    return ends | {id(parameter) for name, parameter in model.named_parameters() if _TOKEN_ROWS in name}
