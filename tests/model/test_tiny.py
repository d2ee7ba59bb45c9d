"""The built-in model."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.loop import tiny_factory


def test_weights_are_drawn_alike_in_every_dtype():
    models = []
    for dtype in ("fp32", "bf16"):
        torch.manual_seed(3)
        factory = tiny_factory(dtype=dtype)
        models.append(factory.create_model(factory.create_config()))
    for whole, rounded in zip(*(model.parameters() for model in models), strict=True):
        assert rounded.dtype == torch.bfloat16 and torch.equal(whole.bfloat16(), rounded)
    assert models[1].model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"hidden_size": 30}, "hidden_size: got 30, expected a multiple of num_attention_heads=4"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: got 3, expected a divisor of num_attention_heads=4"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(values, text):
    with pytest.raises(ValueError, match=text):
        tiny_factory(**values)
