"""The load-balancing loss of a mixture of experts, over the real tokens of whole sequences.

transformers computes it in the model's forward, in the function `load_balancing_loss_func` of the architecture's module
(Switch Transformers, Fedus et al. 2021, equations 4 to 6): the number of experts times the sum over experts of the share of
tokens routed to the expert times its mean probability. Both are means over tokens: they must exclude padding, and include
the tokens of all ranks that share a sequence.

Shapes: B rows, T tokens of this rank, E experts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from arctic_hydra.data.batch import Batch
from arctic_hydra.distributed import SequenceGroup, sequence_group
from arctic_hydra.errors import ConfigError, ModelError
from arctic_hydra.model.ulysses import sum_over_group
from arctic_hydra.trainer.head import model_inputs, probe_batch, probing, unwrap

_FUNCTION = "load_balancing_loss_func"
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
"""Attributes of models or configs that hold the loss coefficient; DBRX's model reads it from a part of its config."""


@dataclass(frozen=True)
class Balance:
    """The load-balancing loss of a model."""

    coefficient: float
    namespace: dict[str, Any] | None
    """The globals of the architecture's module, in which its forward looks up the function."""

    @contextmanager
    def restricted_to(self, batch: Batch) -> Iterator[None]:
        """Make the model's forward compute the loss over the real tokens of `batch`, including its parts on other ranks."""
        group, real_BT = sequence_group(), real_tokens(batch)
        if self.namespace is None or (group is None and real_BT is None):
            yield
            return
        original = self.namespace[_FUNCTION]

        def balanced(*given: Any, **named: Any) -> Any:
            arguments = inspect.signature(original).bind(*given, **named).arguments
            if group is None or not isinstance(arguments["gate_logits"], tuple):
                return original(**{**arguments, "attention_mask": real_BT})
            return balance_loss(arguments["gate_logits"], arguments["top_k"], real_BT, group)

        with _replaced(self.namespace, balanced):
            yield


def find_balance(engine: Any, device: torch.device, sharing: int) -> Balance | None:
    """Return the load-balancing loss of the engine's model, or None if its config does not enable one; collective.

    Raises ModelError if its coefficient is not found. If `sharing` ranks share a sequence, each rank has only part of the
    means, which works for the standard loss alone; raises ConfigError for a model with another one.
    """
    model = unwrap(engine)
    namespace = _namespace(model)
    original: Any = (namespace or {}).get(_FUNCTION)
    calls: list[dict[str, Any]] = []

    def recorded(*given: Any, **named: Any) -> Any:
        calls.append(inspect.signature(original).bind(*given, **named).arguments)
        return original(*given, **named)

    with probing(engine), _replaced(namespace, recorded):
        loss = getattr(engine(**model_inputs(probe_batch(model, device))), "aux_loss", None)
    if loss is None:
        return None
    if sharing > 1 and not (calls and _is_standard_loss(calls[-1], loss)):
        raise ConfigError(
            f"trainer.sequence_parallel_size: got {sharing}, but {type(model).__name__} has its own load-balancing loss, which "
            "cannot be computed from parts of a sequence; pass trainer.sequence_parallel_size=1, or "
            "model.hf_config_kwargs={output_router_logits: false}"
        )
    return Balance(_coefficient(model), namespace)


def balance_loss(
    gate_logits: tuple[torch.Tensor, ...], top_k: int, real_BT: torch.Tensor | None, group: SequenceGroup | None
) -> torch.Tensor:
    """Return the loss from each layer's router logits [B*T, E], over the real tokens of all ranks of the group."""
    experts = gate_logits[0].shape[-1]
    real = gate_logits[0].new_ones(gate_logits[0].shape[0]) if real_BT is None else real_BT.flatten()
    real = real.float()
    chosen_E = torch.zeros(experts, device=real.device)
    probability_E = torch.zeros(experts, device=real.device)
    for logits in gate_logits:
        weights = logits.softmax(dim=-1)
        picks = weights.topk(top_k, dim=-1).indices.flatten()
        chosen_E = chosen_E.scatter_add(0, picks, real.repeat_interleave(top_k))
        probability_E = probability_E + (weights.float() * real[:, None]).sum(0)
    sums = torch.cat([chosen_E, probability_E, real.sum()[None] * len(gate_logits)])
    if group is not None:
        sums = sum_over_group(sums, group)
    chosen_E, probability_E, tokens = sums.split([experts, experts, 1])
    tokens = tokens.clamp(min=1.0)  # a batch that only completes a step has none
    return experts * (chosen_E / tokens * probability_E / tokens).sum()


def real_tokens(batch: Batch) -> torch.Tensor | None:
    """Return a mask of this rank's tokens that are not padding, bool [B, T]; None if all are real, or none on any rank."""
    rows, width = batch.input_ids_BT.shape
    group = sequence_group()
    if batch.num_tokens == rows * width or (group is None and not batch.num_tokens):
        return None
    if batch.cu_seqlens is not None or not batch.num_tokens:
        lengths, start = [batch.num_tokens] * rows, 0  # padding is at the end
    else:
        lengths, start = batch.document_lengths, 0 if group is None else group.rank * width
    device = batch.input_ids_BT.device
    lengths_B1 = torch.tensor(lengths, device=device)[:, None]
    return torch.arange(start, start + width, device=device)[None] < lengths_B1


def _is_standard_loss(arguments: dict[str, Any], loss: torch.Tensor) -> bool:
    if not isinstance(arguments["gate_logits"], tuple) or arguments["gate_logits"][0].ndim != 2:
        return False
    ours = balance_loss(arguments["gate_logits"], arguments["top_k"], None, None)
    return bool(torch.allclose(ours, torch.as_tensor(loss).float(), rtol=1e-4))


def _namespace(model: torch.nn.Module) -> dict[str, Any] | None:
    """Return the globals of the forward that computes the loss, below any wrapper of the model."""
    for module in model.modules():
        found: dict[str, Any] = getattr(inspect.unwrap(type(module).forward), "__globals__", {})
        if _FUNCTION in found:
            return found
    return None


@contextmanager
def _replaced(namespace: dict[str, Any] | None, function: Callable[..., Any]) -> Iterator[None]:
    if namespace is None:
        yield
        return
    original = namespace[_FUNCTION]
    namespace[_FUNCTION] = function
    try:
        yield
    finally:
        namespace[_FUNCTION] = original


def _coefficient(model: Any) -> float:
    owners = (model, model.config.get_text_config())
    for value in (getattr(owner, name, None) for owner in owners for name in _COEFFICIENTS):
        if isinstance(value, int | float):
            return float(value)
    raise ModelError(
        f"model.hf_config_kwargs: output_router_logits is on, but {type(model).__name__} has no router loss coefficient "
        f"(looked for {' and '.join(_COEFFICIENTS)}); pass model.hf_config_kwargs={{output_router_logits: false}}"
    )
