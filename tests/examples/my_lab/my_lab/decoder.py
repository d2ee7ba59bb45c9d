"""A decoder whose attention keeps packed documents apart, and its translation to Llama's layout.

Shapes: B rows, T tokens, C channels, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import LlamaConfig

from arctic_hydra.model.attention import varlen_attention
from arctic_hydra.model.registry import StateDictAdapter
from my_lab.models import DecoderConfig


class Block(nn.Module):
    """Attention with rotary positions, then a gated MLP."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, inner, self.heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTC: torch.Tensor, positions: torch.Tensor, bounds: Any, longest: Any) -> torch.Tensor:
        h = self.norm1(x_BTC)
        q, k, v = (part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = rotate(q, positions), rotate(k, positions)
        mixed = varlen_attention(self, q, k, v, None, cu_seq_lens_q=bounds, max_length_q=longest)[0]
        x_BTC = x_BTC + self.o(mixed.flatten(2))
        h = self.norm2(x_BTC)
        return x_BTC + self.down(silu(self.gate(h)) * self.up(h))


def rotate(x_BHTD: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
    half = x_BHTD.shape[-1] // 2
    rates = 10_000.0 ** -(torch.arange(half, device=x_BHTD.device) / half)
    angles = positions_BT[:, None, :, None] * rates
    cos, sin = angles.cos().to(x_BHTD.dtype), angles.sin().to(x_BHTD.dtype)
    a, b = x_BHTD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Decoder(nn.Module):
    """Token embedding, blocks, and a head that may share the embedding's weight."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        if config.tie:
            self.head.weight = self.embed.weight

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: Any = None, max_seqlen: Any = None
    ) -> torch.Tensor:
        x_BTC = self.embed(input_ids)
        for block in self.blocks:
            x_BTC = block(x_BTC, position_ids, cu_seqlens, max_seqlen)
        return self.head(self.norm(x_BTC))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


TO_LLAMA = {
    ".embed.": ".model.embed_tokens.",
    ".blocks.": ".model.layers.",
    ".norm.": ".model.norm.",
    ".head.": ".lm_head.",
    ".norm1.": ".input_layernorm.",
    ".norm2.": ".post_attention_layernorm.",
    **{f".{name}.": f".self_attn.{name}_proj." for name in "qkvo"},
    **{f".{name}.": f".mlp.{name}_proj." for name in ("gate", "up", "down")},
}
FROM_LLAMA = {theirs: ours for ours, theirs in TO_LLAMA.items()}


class LlamaLayout(StateDictAdapter):
    """The decoder as a Llama: the same computation under other names."""

    def hf_config(self) -> LlamaConfig:
        names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
        sizes = {name: getattr(self.config, name) for name in names}
        heads = self.config.num_attention_heads
        return LlamaConfig(**sizes, num_key_value_heads=heads, tie_word_embeddings=self.config.tie, rms_norm_eps=1e-6)

    def to_hf(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return renamed(state_dict, TO_LLAMA)

    def from_hf(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return renamed(state_dict, FROM_LLAMA)


def renamed(state_dict: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    result = {}
    for name, value in state_dict.items():
        new_name = f".{name}"
        for old, new in names.items():
            new_name = new_name.replace(old, new)
        result[new_name[1:]] = value
    return result
