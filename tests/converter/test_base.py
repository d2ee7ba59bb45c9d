"""The base of the converters."""

from __future__ import annotations

import torch

from arctic_hydra.converter.base import ModelConverter, Phase
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer


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


class Counting(ModelConverter):
    """Records the step at which its hook is called, and whether the model is that of the engine."""

    def __init__(self, trainer):
        self.of, self.calls = trainer, []

    def convert(self, model):
        return model

    def post_optimizer_hook(self, model):
        self.calls.append((self.of.global_step + 1, model is self.of.tools.engine.module))


def _calls(folder, stages):
    found = []
    for stage in stages:
        trainer = make_trainer(documents([12] * 8, [4, 4, 0, 0, 4, 4, 4, 4]), folder, stage=stage)
        counting = Counting(trainer)
        trainer.tools.converters.append(counting)
        trainer.train()
        found.append(counting.calls)
    return found


def test_the_hook_runs_once_after_each_step_that_changed_the_weights(tmp_path):
    """Hung on the optimizer, it would run once per sub-group at ZeRO-3; step 2 has no supervised tokens."""
    for found in run_ranks(2, _calls, tmp_path, (0, 1, 2, 3)):
        assert found == [[(step, True) for step in (1, 3, 4)]] * 4
