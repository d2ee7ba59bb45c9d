"""The output head of a model, tapped to compute the loss from supervised rows only.

The loss is computed inside the head's own forward, which the model calls as usual: DeepSpeed's hooks around it gather the
weight under ZeRO-3, in both passes, and gradients flow as usual. Everything between hidden states and head, and the
router losses of a mixture of experts, remains the model's own code.

Shapes: B rows, T tokens, K supervised positions, H hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from arctic_hydra.data.batch import Batch
from arctic_hydra.trainer.chunked import AS_IS, LogitTransform

Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Computes a result from hidden states [B, T, H] and the head's weight [V, H] and bias [V]."""


class Head:
    """A linear output head whose input can be tapped: the result of `compute` replaces the logits.

    The tap consists of a forward that computes the result, and of two hooks that run after DeepSpeed's own (registered
    earlier): one passes a placeholder for the logits to the model, one puts the result into the model's output, where the
    engine hooks it for the backward pass. All three are inactive outside of `run`.
    """

    def __init__(self, model: nn.Module, projection: nn.Module, transform: LogitTransform) -> None:
        self.transform = transform
        self._compute: Compute | None = None
        self._result: torch.Tensor | None = None

        @torch.compiler.disable
        def forward(module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
            if self._compute is None:
                return type(module).forward(module, hidden)  # type: ignore[no-any-return]
            return self._compute(hidden, *_weight_and_bias(module))

        @torch.compiler.disable
        def take(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            if self._compute is None:
                return None
            self._result = output
            return torch.zeros(1, 1, 1, dtype=inputs[0].dtype, device=inputs[0].device)

        @torch.compiler.disable
        def put(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._compute is not None:
                assert self._result is not None, "the model did not call its output head"
                output["logits"], self._result = self._result, None

        projection.forward = MethodType(forward, projection)  # type: ignore[method-assign]  # copied with the model
        # On the outermost module: DeepSpeed also hooks PEFT's wrapper of the layer, and the result has to pass through it.
        model.get_output_embeddings().register_forward_hook(take)  # type: ignore[operator]
        model.register_forward_hook(put)

    def run(self, engine: Any, batch: Batch, compute: Compute) -> tuple[torch.Tensor, Any]:
        """Run the model over `batch`; return the result of `compute` for the head's input, and the model's output."""
        self._compute = compute
        try:
            output = engine(**model_inputs(batch))
        finally:
            self._compute = None
        return output.logits, output


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Return the inputs of the model's forward, without attention mask and cache, which would break document isolation."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids_BT,
        "position_ids": batch.position_ids_BT,
        "attention_mask": None,
        "use_cache": False,
    }
    if batch.cu_seqlens is not None:
        inputs |= {
            "cu_seq_lens_q": batch.cu_seqlens,
            "cu_seq_lens_k": batch.cu_seqlens,
            "max_length_q": batch.max_seqlen,
            "max_length_k": batch.max_seqlen,
        }
    return inputs


def unwrap(engine: Any) -> Any:
    """Return the model inside an engine; a model that no engine wraps is returned as it is."""
    return getattr(engine, "module", engine)


def tap_head(engine: Any, device: torch.device) -> Head | str:
    """Return the tapped head of the engine's model, or the reason why the loss needs all logits; collective.

    Two forward passes over eight tokens: the first finds the model's transform of its logits by injecting known ones; the
    second verifies that the head with this transform gives the model's logits.
    """
    model = unwrap(engine)
    projection = _projection(model)
    if isinstance(projection, str):
        return projection
    transform = _proven_transform(engine, model, projection, device)
    return transform if isinstance(transform, str) else Head(model, projection, transform)


def _proven_transform(engine: Any, model: Any, projection: nn.Module, device: torch.device) -> LogitTransform | str:
    batch = probe_batch(model, device)
    grid, seen = torch.tensor(_GRID, dtype=torch.float64, device=device), []

    def replace_logits(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        return grid[None, None] if len(seen) == 1 else output

    with probing(engine):
        handle = projection.register_forward_hook(replace_logits)
        try:
            of_grid, of_logits = (engine(**model_inputs(batch)).logits for _ in range(2))
        except RuntimeError:  # code behind the head that relies on the shape of the logits
            if len(seen) != 1:
                raise
            return f"{type(model).__name__} transforms its logits in an unknown way"
        finally:
            handle.remove()
    called_once = len(seen) == 2 and of_grid.numel() == len(_GRID)
    transform = _fit_transform(grid, of_grid.flatten()) if called_once else None
    if transform is None:
        return f"{type(model).__name__} transforms its logits in an unknown way"
    ours, theirs = transform(seen[-1].float().clone()), of_logits.float()
    tolerance = 1e-4 if of_logits.dtype == torch.float32 else 4e-2
    if ours.shape != theirs.shape or not bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max()):
        return f"the logits of {type(model).__name__} differ from what its head alone computes"
    return transform


def plain_head(model: nn.Module) -> Head | None:
    """Return the tapped head of a model on fake tensors, assumed to have no transform; None if the head is not linear."""
    projection = _projection(model)
    return None if isinstance(projection, str) else Head(model, projection, AS_IS)


def _projection(model: Any) -> nn.Module | str:
    """Return the module that projects to the vocabulary, or the reason why it cannot be tapped.

    It is a linear layer, or PEFT's layer around one that trains the rows of some tokens.
    """
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if hasattr(head, "modules_to_save"):  # PEFT trains a copy of it
        head = head.modules_to_save[head.active_adapters[0]]
    if head is None:
        return f"{type(model).__name__} does not provide its LM head"
    adapter = getattr(head, "token_adapter", None)
    linear = head if adapter is None else adapter.base_layer
    if hasattr(linear, "base_layer"):
        return "the LM head has an adapter, which reading the weight directly would bypass"
    if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
        return f"the LM head is a {type(linear).__name__}, not a plain linear layer"
    return linear if adapter is None else adapter  # type: ignore[no-any-return]


def _weight_and_bias(projection: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight and bias of the projection; PEFT's layer inserts its rows into a copy of the weight and drops the bias."""
    if isinstance(projection, nn.Linear):
        return projection.weight, projection.bias
    return projection.get_merged_weights(projection.active_adapters), None


def probe_batch(model: Any, device: torch.device) -> Batch:
    """Return a batch of eight tokens for probing a model."""
    tokens, vocabulary = 8, int(model.config.get_text_config().vocab_size)
    positions = torch.arange(tokens, device=device)
    return Batch(
        input_ids_BT=(positions * 7 % vocabulary)[None],
        position_ids_BT=positions[None],
        rows_K=positions,
        targets_K=positions,
        source_K=torch.zeros_like(positions),
        max_seqlen=tokens,
    )


@contextmanager
def evaluating(engine: Any) -> Iterator[None]:
    """Run the model in its evaluation mode and without gradients."""
    training = unwrap(engine).training  # `training` of an engine is always True
    engine.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        engine.train(training)


@contextmanager
def probing(engine: Any) -> Iterator[None]:
    """Run the model without gradients, dropout and compilation, so that a probe does not change the random state either."""
    with evaluating(engine), torch.compiler.set_stance("force_eager"):
        yield


# From where a softcap is linear to where it has saturated.
_GRID = [0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1e6, -0.1, -3.0, -30.0, -1e6]


def _fit_transform(given: torch.Tensor, seen: torch.Tensor) -> LogitTransform | None:
    """Return the transform from `given` to `seen`, or None if it is not a scale with or without a softcap."""
    x, y = given.double().tolist(), seen.double().tolist()
    if not all(math.isfinite(value) for value in y):
        return None
    scale, cap = y[2] / x[2], y[7]
    if all(math.isclose(b, scale * a, rel_tol=1e-5) for a, b in zip(x, y, strict=True)):
        return LogitTransform(scale)
    if cap <= 0 or not -1 < y[0] / cap < 1:
        return None
    scale = cap * math.atanh(y[0] / cap) / x[0]
    fits = all(math.isclose(b, cap * math.tanh(scale * a / cap), rel_tol=1e-4) for a, b in zip(x, y, strict=True))
    return LogitTransform(_round(scale), _round(cap)) if fits else None


def _round(value: float) -> float:
    """Drop digits below the precision of the model's fp32 arithmetic."""
    return float(f"{value:.6g}")
