"""Probe that a model's tokens attend neither to later tokens nor to other documents.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import AttentionInterface

from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.attention import varlen_attention
from arctic_hydra.model.layers import layer_configs
from arctic_hydra.model.names import VARLEN_ATTENTION
from arctic_hydra.trainer.head import model_inputs, probing, unwrap

_FIRST, _SECOND = 17, 12
"""Lengths of the two documents."""


def check_causality(engine: Any, device: torch.device, attention: str) -> None:
    """Raise ConfigError for a model that ignores the chosen attention, or whose tokens depend on later ones; collective.

    transformers builds no mask for `arctic_varlen`, which is causal by itself. An architecture with its own attention code,
    which ignores that name, may then have no mask at all.
    """
    model = unwrap(engine)
    documents = [replace(_two_documents(step, model, device), cu_seqlens=None) for step in (7, 11)]
    ids, changed = (batch.input_ids_BT[0] for batch in documents)
    changed[:-1], changed[-1] = ids[:-1], 0 if int(ids[-1]) else 1  # another last token
    with _recorded_calls() as calls:
        try:
            change, scale = _change(engine, documents, slice(None, -1))
        except Exception as error:
            if attention != VARLEN_ATTENTION or calls:
                raise
            raise _attention_not_called(model) from error
    has_heads = any(getattr(layer, "num_attention_heads", None) for layer in layer_configs(model.config))
    if attention == VARLEN_ATTENTION and has_heads and not calls:
        raise _attention_not_called(model)
    if change > _tolerance(model) * scale:
        raise ConfigError(
            f"model: in {type(model).__name__} with model.attn_implementation={attention} tokens depend on later ones: changing the "
            f"last token changed earlier logits by {change:.2g} (their largest: {scale:.2g}); expected a causal model (for BERT and "
            "similar models pass model.hf_config_kwargs={is_decoder: true})"
        )


def check_isolation(engine: Any, device: torch.device, attention: str, sharing: int = 1) -> None:
    """Raise ConfigError for a model in which the documents of a packed row affect each other; collective.

    Such a model is also refused if `sharing` ranks share a sequence, packed or not: it mixes tokens outside attention, and
    only attention communicates across ranks.

    Attention isolates documents by their boundaries, but not every architecture passes these on to its attention, and
    recurrent layers, convolutions and a model's own masks ignore them. In two forward passes over two packed documents, of
    which only the first differs, the logits of the second must be the same.
    """
    model = unwrap(engine)
    documents = [_two_documents(step, model, device) for step in (7, 11)]
    change, scale = _change(engine, documents, slice(_FIRST, None))
    if change <= _tolerance(model) * scale:
        return
    name = type(model).__name__
    if sharing > 1:
        raise ConfigError(
            f"trainer.sequence_parallel_size: got {sharing}, but in {name} tokens interact outside attention (recurrent layers, "
            f"convolutions), and only attention communicates across the ranks that share a sequence; pass trainer.sequence_parallel_size=1"
        )
    other = ""
    if attention == VARLEN_ATTENTION:
        other = ", or try model.attn_implementation=sdpa or eager, whose masks are built from the positions"
    raise ConfigError(
        f"data.packing: got true, but {name} mixes the documents of a packed row with "
        f"model.attn_implementation={attention}: changing the first document changed the logits of the second by {change:.2g} "
        f"(their largest: {scale:.2g}); pass data.packing=false{other}"
    )


def _change(engine: Any, batches: list[Batch], tokens: slice) -> tuple[float, float]:
    """Return the largest difference between the logits of `tokens` in two batches, and the largest logit."""
    with probing(engine):
        before_TV, after_TV = (engine(**model_inputs(batch)).logits[0, tokens].float() for batch in batches)
    return float((before_TV - after_TV).abs().max()), float(before_TV.abs().max())


def _tolerance(model: torch.nn.Module) -> float:
    return 1e-4 if next(model.parameters()).dtype == torch.float32 else 2e-2


@contextmanager
def _recorded_calls() -> Iterator[list[bool]]:
    """Yield a list that grows with each call of `arctic_varlen` within this context."""
    calls: list[bool] = []

    def watched(*given: Any, **named: Any) -> Any:
        calls.append(True)
        return varlen_attention(*given, **named)

    AttentionInterface.register(VARLEN_ATTENTION, watched)
    try:
        yield calls
    finally:
        AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)


def _attention_not_called(model: torch.nn.Module) -> ConfigError:
    return ConfigError(
        f"model.attn_implementation: got {VARLEN_ATTENTION}, but {type(model).__name__} has its own attention code and never calls "
        "it; pass model.attn_implementation=eager, plus data.packing=false if packed documents then attend to each other"
    )


def _two_documents(step: int, model: Any, device: torch.device) -> Batch:
    """Return two packed documents, of which only the first depends on `step`."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    first, second = torch.arange(_FIRST, device=device), torch.arange(_SECOND, device=device)
    ids = torch.cat([(first * step + step) % vocabulary, (second * 5 + 1) % vocabulary])
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Batch(
        input_ids_BT=ids[None],
        position_ids_BT=torch.cat([first, second])[None],
        rows_K=none,
        targets_K=none,
        source_K=none,
        cu_seqlens=torch.tensor([0, _FIRST, _FIRST + _SECOND], dtype=torch.int32, device=device),
        max_seqlen=_FIRST,
    )
