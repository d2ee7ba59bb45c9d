"""Rows of embedding and head for added tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_hydra.distributed import gathered

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def fit_vocabulary(model: PreTrainedModel, tokens: int, added: list[int], multiple: int) -> None:
    """Resize the model's vocabulary for a tokenizer of `tokens` tokens, of which the ids `added` are new to the model.

    Embedding and head grow to a multiple of `multiple` if they have too few rows. New tokens start at the mean of the known
    tokens' rows (Hewitt 2021), also in spare rows of the model. The ids are stored on the model as `added_token_ids`, for
    converters. Collective under ZeRO-3.
    """
    import torch

    rows = model.get_input_embeddings().num_embeddings  # type: ignore[union-attr]
    wanted = -(-max(rows, tokens) // multiple) * multiple
    if wanted != rows:
        model.resize_token_embeddings(wanted, mean_resizing=False)  # type: ignore[arg-type]
    first_new = tokens - len(added)
    fresh = [*added, *range(max(rows, tokens), wanted)]
    for table in _tables(model):
        with torch.no_grad(), gathered(table, writes=True):
            if fresh and table.numel():
                table[fresh] = table[:first_new].float().mean(dim=0).to(table.dtype)
    model.added_token_ids = added  # type: ignore[assignment]


def _tables(model: Any) -> list[torch.nn.Parameter]:
    """Return the weights (and the head's bias) with a row for each token, a tied one once."""
    head = model.get_output_embeddings()
    found = [model.get_input_embeddings().weight, *([head.weight] if head is not None else [])]
    if getattr(head, "bias", None) is not None:
        found.append(head.bias)
    return list({id(table): table for table in found}.values())
