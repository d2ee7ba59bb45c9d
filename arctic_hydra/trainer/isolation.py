"""Whether documents that are packed into one row keep apart in a model, tried out on two of them.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from arctic_hydra.batch import Batch
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.base import VARLEN_ATTENTION
from arctic_hydra.trainer.head import model_inputs, quietly

_FIRST, _SECOND = 17, 12
"""Tokens of the two documents."""


def check_isolation(engine: Any, device: torch.device, attention: str, sharing: int = 1) -> None:
    """Raise ConfigError for a model in which one document of a packed row sees another; collective.

    Such a model is refused as well where `sharing` ranks hold a sequence, packed or not: what mixes documents mixes tokens outside
    of attention, and attention alone reaches those of the other ranks.

    Attention keeps documents apart by their bounds, but not every architecture hands them on to its attention, and
    recurrent layers, convolutions and masks of a model's own know nothing of them. Two forward passes over two packed
    documents, between which the first one changes, must give the second one the same logits.
    """
    model = getattr(engine, "module", engine)
    vocabulary = int(model.config.get_text_config().vocab_size)
    with quietly(engine):
        before_TV, after_TV = (
            engine(**model_inputs(_two_documents(step, vocabulary, device))).logits[0, _FIRST:].float()
            for step in (7, 11)
        )
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 2e-2
    change, scale = (float(x.abs().max()) for x in (before_TV - after_TV, before_TV))
    if change <= tolerance * scale:
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


def _two_documents(step: int, vocabulary: int, device: torch.device) -> Batch:
    """Return two packed documents, of which only the first depends on `step`."""
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
