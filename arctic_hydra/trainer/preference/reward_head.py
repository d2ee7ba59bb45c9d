"""Scores of documents from the score head of a sequence classifier, read at the last token of each.

Shapes: B rows, T tokens per row, N = B * T, D documents, H hidden width.
"""

from __future__ import annotations

from dataclasses import replace
from types import MethodType
from typing import Any

import torch

from arctic_hydra.checkpoint.hf import without_adapter
from arctic_hydra.checkpoint.initial_weights import has_adapter
from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.score_head import score_head
from arctic_hydra.trainer.head import model_inputs, probe_batch, probing, unwrap


def last_tokens(batch: Batch, pad_token_id: int | None) -> torch.Tensor:
    """Return where the last token of each document is among the N positions of the batch, int64 [D]; does not wait for the device.

    It is the last one that is not the padding token, as transformers' classifiers choose it: a stop token that also pads is not
    read. The first token of a document that consists of padding tokens.
    """
    ids_N, documents = batch.input_ids_BT.flatten(), len(batch.document_lengths)
    if batch.cu_seqlens is not None:  # a padded row has one more document
        start_D, end_D = batch.cu_seqlens[:documents].long(), batch.cu_seqlens[1 : documents + 1].long()
    else:
        lengths_D = torch.tensor(batch.document_lengths)
        if ids_N.is_cuda:
            lengths_D = lengths_D.pin_memory().to(ids_N.device, non_blocking=True)
        start_D = torch.arange(documents, device=ids_N.device) * batch.input_ids_BT.shape[1]
        end_D = start_D + lengths_D
    place_N = torch.arange(len(ids_N), device=ids_N.device)
    if pad_token_id is not None:
        place_N = torch.where(ids_N == pad_token_id, -1, place_N).cummax(0).values
    return torch.maximum(place_N[end_D - 1], start_D)


class SequenceScores:
    """Computes scores in the forward pass of a classifier's engine, at any positions.

    The engine calls the model as usual, so that its hooks gather weights under ZeRO-3; only the choice of the position, one per
    row in transformers, is replaced, in the forward of this model.
    """

    def __init__(self, engine: Any, pad_token_id: int | None) -> None:
        self._engine, self._pad_token_id = engine, pad_token_id
        model = unwrap(engine)
        inner = without_adapter(model)
        usual = inner.forward

        def forward(module: Any, *given: Any, read_at: torch.Tensor | None = None, **named: Any) -> Any:
            if read_at is None:
                return usual(*given, **named)
            inputs = {name: value for name, value in named.items() if value is not None}
            hidden_BTH = getattr(module, module.base_model_prefix)(**inputs)[0]
            return module.score(hidden_BTH.flatten(0, 1)[read_at])[:, 0]

        inner.forward = MethodType(forward, inner)

    def at(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Return the scores at positions of the flattened B*T tokens, fp32, one for each; collective under ZeRO-3."""
        scores: torch.Tensor = self._engine(**model_inputs(batch), read_at=positions)
        return scores.float()

    def of_documents(self, batch: Batch) -> torch.Tensor:
        """Return the score of each document, fp32 [D]; collective under ZeRO-3."""
        return self.at(batch, last_tokens(batch, self._pad_token_id))

    def check(self, device: torch.device) -> None:
        """Raise ConfigError if the model's own scores differ from these, or if its head is not trained. Two forward passes, collective."""
        model = unwrap(self._engine)
        name = type(without_adapter(model)).__name__
        head = score_head(model)
        if head is None:
            raise ConfigError(
                f"model: {name} has no score head; expected a model that transformers' AutoModelForSequenceClassification creates"
            )
        if has_adapter(model) and not any(p.requires_grad for p in head.parameters()):
            kind = model.peft_config["default"].peft_type.value
            raise ConfigError(
                f"peft: {kind} cannot train the score head of {name}, which is new; pass peft=lora, or another type with modules_to_save"
            )
        batch, configured = probe_batch(model, device), model.config.get_text_config().pad_token_id
        batch = replace(batch, document_lengths=[batch.max_seqlen])
        with probing(self._engine):
            ours = self.at(batch, last_tokens(batch, configured))
            theirs = self._engine(**model_inputs(batch)).logits.flatten().float()
        tolerance = 1e-4 if theirs.dtype == torch.float32 else 4e-2
        if ours.shape != theirs.shape or not bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max()):
            raise ConfigError(
                f"model: the score of {name} is not what its head computes from the last hidden state, so it cannot be read at the "
                "end of each document; choose an architecture such as llama, qwen3 or gemma3"
            )
