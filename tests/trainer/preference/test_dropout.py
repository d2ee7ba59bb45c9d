"""Dropout layers, and rates that attention layers pass to functions."""

from __future__ import annotations

import torch
from torch import nn

from arctic_hydra.trainer.preference.dropout import disable_dropout
from tests.trainer.loop import tiny_factory


def test_every_rate_is_set_to_zero_and_named():
    factory = tiny_factory(hf_config_kwargs={"attention_dropout": 0.3})
    model = factory.create_model(factory.create_config())
    model.extra = nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.0))
    found = disable_dropout(model)
    assert found == [f"model.layers.{n}.self_attn.attention_dropout" for n in range(2)] + ["extra.0.p"]
    assert disable_dropout(model) == []
    model.train()
    ids = torch.arange(8)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
