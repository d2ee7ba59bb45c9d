"""The base of the converters."""

from __future__ import annotations

import torch

from arctic_hydra.converter.base import ModelConverter, Phase


def test_a_converter_changes_nothing_but_what_it_defines():
    class Marked(ModelConverter):
        def convert(self, model):
            model.marked = True
            return model

    model = torch.nn.Linear(2, 2)
    converter = Marked()
    assert converter.convert(model).marked
    with converter.without_rounding(model):
        converter.post_optimizer_hook(model)
    assert converter.phase is Phase.modules < Phase.trainable < Phase.adapters
