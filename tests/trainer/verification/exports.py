"""Exports of tiny models in this process, and what they have to reproduce."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from arctic_hydra.assets import ASSETS
from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint, write_export
from arctic_hydra.component import CAUSAL_LM
from arctic_hydra.trainer.verification.expectation import Expectation, expect

STOPS = [3]
"""The trained stop token, `<|im_end|>`."""


def make_model(*, tied: bool = False, dtype: torch.dtype = torch.float32, classifier: bool = False) -> Any:
    """Return a Llama of random weights, hidden 32, for the bundled tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_labels": 1, "pad_token_id": 0} if classifier else {}
    config = LlamaConfig(vocab_size=4096, tie_word_embeddings=tied, max_position_embeddings=128, **sizes, **more)
    return (LlamaForSequenceClassification if classifier else LlamaForCausalLM)(config).to(dtype)


def make_tokenizer() -> Any:
    """Return the bundled tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS / "tokenizer")


def expectation(model: Any, auto_class: str = CAUSAL_LM) -> Expectation:
    """Return what an export of `model` has to reproduce."""
    return expect(model, make_tokenizer(), STOPS, torch.device("cpu"), auto_class)


def export(model: Any, folder: Path) -> None:
    """Write the export of `model`, as a run does."""
    write_export(model, model.state_dict(), make_tokenizer(), folder, HuggingFaceCheckpoint(), STOPS)


def change(path: Path, **values: Any) -> None:
    """Set values in a JSON file of an export."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
