"""What an export has to reproduce: the outputs of the trained model itself, its tokenizer and its stop tokens.

The outputs come from the model in training, before anything is gathered, merged, renamed or written, so that they do not
depend on how an export is made.

Shapes: R rows of output, which are the T tokens of the sample, or a reward model's prefixes of it; V vocabulary, 1 for scores.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from arctic_hydra.checkpoint.hf import without_adapter
from arctic_hydra.checkpoint.initial_weights import has_adapter
from arctic_hydra.component import CAUSAL_LM
from arctic_hydra.distributed import count_numbers
from arctic_hydra.trainer.head import model_inputs, probe_batch, probing, unwrap

log = logging.getLogger("arctic_hydra.trainer")

TEXT = "A farmer has 12 cows and buys 5 more. How many cows are there? There are 12 + 5 = 17 cows, naïve № 3 included."
"""The text of the sample, after the stop tokens and the added tokens."""
LONGEST_SAMPLE, MOST_SPECIAL, PREFIXES = 48, 16, 8
"""Tokens of the sample, those of them that are special or added, and prefixes of it that a reward model scores."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What an export has to reproduce."""

    rows: list[list[int]]
    """The token ids of each input: one sample, or several prefixes of it for a reward model."""
    outputs_RV: torch.Tensor
    """Logits at each token of the sample, or the score of each prefix; fp32, on the CPU. Empty if there is a `problem`."""
    problem: str
    """Why the model in training gave no outputs; empty if it did."""
    without_adapter_RV: torch.Tensor | None
    """The same with the adapter switched off; None for a model without one, and for scores."""
    dtype: torch.dtype
    """Data type in which the model computes."""
    tied: bool | None
    """Whether embedding and head are one matrix; None if there is no head, or if an adapter changes one of them."""
    tokenizer: Any
    stop_tokens: Sequence[int]
    """Ids of the tokens at which generation has to stop."""
    auto_class: str
    """Name of the class of transformers that creates the model."""
    quantization: Any
    """transformers' config of the quantized base, or None."""
    parameters: int
    held_bytes: int
    """Size of the weights on this rank, as they are in training."""
    trusts_remote_code: bool
    reload_seconds: float = 600.0
    """Longest estimated time of loading and running an export again, during which other ranks wait."""

    @property
    def generates(self) -> bool:
        """Whether the model generates text, instead of scoring it."""
        return self.auto_class == CAUSAL_LM


def expect(
    engine: Any,
    tokenizer: Any,
    stop_tokens: Sequence[int],
    device: torch.device,
    auto_class: str = CAUSAL_LM,
    *,
    trusts_remote_code: bool = False,
) -> Expectation:
    """Return what an export of the engine's model has to reproduce; `engine` may also be the model itself.

    One forward pass of at most 48 tokens, two with an adapter, without gradients; collective. `stop_tokens` are those that
    were trained; without any, generation has to stop at the tokenizer's eos token.
    """
    model = unwrap(engine)
    eos = tokenizer.eos_token_id
    stops = list(stop_tokens) or ([] if eos is None else [eos])
    rows = _sample(model, tokenizer, stops)
    if auto_class != CAUSAL_LM:
        step = max(1, len(rows[0]) // PREFIXES)
        rows = [rows[0][:end] for end in range(step, len(rows[0]) + 1, step)]
    outputs_RV, without_RV, problem = torch.empty(0, 0), None, ""
    try:
        with probing(engine):
            outputs_RV = _outputs(engine, rows, device)
            if auto_class == CAUSAL_LM and has_adapter(model):
                with model.disable_adapter():
                    without_RV = _outputs(engine, rows, device)
    except Exception as error:  # a user's trainer may call its model in another way
        log.debug("the model gives no outputs to compare with", exc_info=True)
        problem = f"the model in training raises {type(error).__name__} for a text of {len(rows[-1])} tokens"
    base = without_adapter(model)
    return Expectation(
        rows=rows,
        outputs_RV=outputs_RV,
        problem=problem,
        without_adapter_RV=without_RV,
        dtype=working_dtype(model),
        tied=has_tied_head(base),
        tokenizer=tokenizer,
        stop_tokens=stops,
        auto_class=auto_class,
        quantization=getattr(base.config, "quantization_config", None),
        parameters=sum(count_numbers(parameter) for parameter in model.parameters()),
        held_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        trusts_remote_code=trusts_remote_code,
    )


def has_tied_head(model: Any) -> bool | None:
    """Whether embedding and head of a model share one weight; None if one of them is missing or not a plain layer."""
    found = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    if not (isinstance(found[0], nn.Embedding) and isinstance(found[1], nn.Linear)):
        return None
    return found[0].weight is found[1].weight


def working_dtype(model: nn.Module) -> torch.dtype:
    """Return the data type of the first weight that is a matrix of floating-point numbers, which quantized ones are not."""
    kinds = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    return next(kinds, torch.float32)


def _sample(model: Any, tokenizer: Any, stops: list[int]) -> list[list[int]]:
    """Return the ids of the stop tokens, of added tokens and of `TEXT`, as far as the model has rows and positions for them.

    The padding token is left out: transformers takes it for the end of a text.
    """
    text = model.config.get_text_config()
    added = [token for token in tokenizer.added_tokens_decoder if token not in stops]
    special = [token for token in (*stops, *added) if token != tokenizer.pad_token_id]
    ids = [*special[:MOST_SPECIAL], *tokenizer(TEXT, add_special_tokens=False)["input_ids"]]
    limit = getattr(text, "max_position_embeddings", None) or LONGEST_SAMPLE
    known = [token for token in ids if token < text.vocab_size][: min(limit, LONGEST_SAMPLE)]
    return [known or [0]]


def _outputs(engine: Any, rows: list[list[int]], device: torch.device) -> torch.Tensor:
    """Return the logits of each token, or the score of each row, in fp32 on the CPU; collective under ZeRO-3."""
    model = unwrap(engine)
    found = []
    for row in rows:
        ids_BT = torch.tensor([row], device=device)
        places_BT = torch.arange(len(row), device=device)[None]
        batch = replace(probe_batch(model, device), input_ids_BT=ids_BT, position_ids_BT=places_BT, max_seqlen=len(row))
        logits = engine(**model_inputs(batch)).logits
        found.append(logits.reshape(-1, logits.shape[-1]).float().cpu())
    return torch.cat(found)
