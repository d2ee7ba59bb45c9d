"""A recurrent model, which reads over the bounds of packed documents: it trains with `data.packing=false`."""

from __future__ import annotations

import torch
from torch import nn

from my_lab.models import GRUConfig


class GRULanguageModel(nn.Module):
    """Token embedding, gated recurrent units (Cho et al. 2014), and a head of its own."""

    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.cells = nn.GRU(config.hidden_size, config.hidden_size, config.num_layers, batch_first=True)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(self.embed(input_ids))[0])

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def get_output_embeddings(self) -> nn.Linear:
        return self.head
