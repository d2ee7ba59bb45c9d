"""Whether a model's tokens see what they should, tried out on a few of them: no later ones, and none of another document.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import AttentionInterface

from arctic_hydra.batch import Batch
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.attention import varlen_attention
from arctic_hydra.model.layers import layer_configs
from arctic_hydra.model.names import VARLEN_ATTENTION
from arctic_hydra.trainer.head import model_inputs, probing, unwrap

_FIRST, _SECOND = 17, 12
"""Tokens of the two documents."""


def check_causality(engine: Any, device: torch.device, attention: str) -> None:
    """Raise ConfigError for a model that does not take the chosen attention, or whose tokens see later ones; collective.

    transformers builds no mask for `arctic_varlen`, which is causal by itself: an architecture with an attention of its
    own, which knows nothing of that name, may then have none at all.
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
            f"model: in {type(model).__name__} with model.attn_implementation={attention} tokens see later ones: another last token "
            f"changed logits before it by {change:.2g} (their largest: {scale:.2g}); expected a causal model (for BERT and its kin pass "
            "model.hf_config_kwargs={is_decoder: true})"
        )


def check_isolation(engine: Any, device: torch.device, attention: str, sharing: int = 1) -> None:
    """Raise ConfigError for a model in which one document of a packed row sees another; collective.

    Such a model is refused as well where `sharing` ranks hold a sequence, packed or not: what mixes documents mixes tokens outside
    of attention, and attention alone reaches those of the other ranks.

    Attention keeps documents apart by their bounds, but not every architecture hands them on to its attention, and
    recurrent layers, convolutions and masks of a model's own know nothing of them. Two forward passes over two packed
    documents, between which the first one changes, must give the second one the same logits.
    """
    model = unwrap(engine)
    documents = [_two_documents(step, model, device) for step in (7, 11)]
    change, scale = _change(engine, documents, slice(_FIRST, None))
    if change <= _tolerance(model) * scale:
        return
    name = type(model).__name__
    if sharing > 1:
        raise ConfigError(
            f"trainer.sequence_parallel_size: got {sharing}, but tokens of {name} depend on others outside of attention, which alone "
            f"reaches the parts of a sequence that other ranks hold; pass trainer.sequence_parallel_size=1"
        )
    other = ""
    if attention == VARLEN_ATTENTION:
        other = ", or try model.attn_implementation=sdpa or eager, whose masks are built from the positions"
    raise ConfigError(
        f"data.packing: got true, but {name} mixes the documents of a packed row with "
        f"model.attn_implementation={attention}: another first document changed the logits of the second by {change:.2g} "
        f"(their largest: {scale:.2g}); pass data.packing=false{other}"
    )


def _change(engine: Any, batches: list[Batch], tokens: slice) -> tuple[float, float]:
    """Return how far the logits of `tokens` are apart between two batches, and the largest of them."""
    with probing(engine):
        before_TV, after_TV = (engine(**model_inputs(batch)).logits[0, tokens].float() for batch in batches)
    return float((before_TV - after_TV).abs().max()), float(before_TV.abs().max())


def _tolerance(model: torch.nn.Module) -> float:
    return 1e-4 if next(model.parameters()).dtype == torch.float32 else 2e-2


@contextmanager
def _recorded_calls() -> Iterator[list[bool]]:
    """Yield a list that grows with each call of our attention within this context."""
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
        f"model.attn_implementation: got {VARLEN_ATTENTION}, but {type(model).__name__} attends in a way of its own and never calls "
        "it; pass model.attn_implementation=eager, and data.packing=false should the documents of a row then see each other"
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
