"""Small models with different output heads, and a batch for them."""

from __future__ import annotations

import torch
import transformers

from tests.trainer.loop import batch_of, documents, tiny_factory

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def some_batch():
    return batch_of(documents([17], [9], vocabulary=96))


def llama(tied=False):
    factory = tiny_factory(vocab_size=96, tie_word_embeddings=tied)
    torch.manual_seed(0)
    return factory.create_model(factory.create_config()).eval()


class Squared(transformers.LlamaForCausalLM):
    """A model with an unknown transform: its logits are squared."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output["logits"] = output.logits.square()
        return output


class Shifted(transformers.LlamaForCausalLM):
    """A model that adds something to the logits of its head."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        if output.logits.shape[-1] == 96:
            output["logits"] = output.logits + torch.arange(96.0)
        return output


class Viewed(transformers.LlamaForCausalLM):
    """A model that relies on the shape of its logits."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output["logits"] = output.logits.view(*inputs["input_ids"].shape, 96)
        return output
