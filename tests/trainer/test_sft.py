"""The options of the supervised fine-tuning trainer."""

from __future__ import annotations

import pytest

from arctic_hydra.errors import ConfigError
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.trainer.sft import HeadLoss, SFTTrainer
from tests.ranks import run_ranks
from tests.trainer.heads import SIZES, Squared
from tests.trainer.loop import documents, make_trainer, tiny_factory


class SquaredFactory(TinyModelFactory):
    """Creates models of class Squared."""

    def create_model(self, config):
        model = super().create_model(config)
        model.__class__ = Squared
        return model


def _refused(folder):
    factory = SquaredFactory(**{name: getattr(tiny_factory(), name) for name in SIZES if name != "pad_token_id"})
    with pytest.raises(ConfigError, match=r"trainer.head_loss: got chunked, but .*; pass trainer.head_loss=full"):
        make_trainer(documents([9], [5]), folder, model=factory, head_loss="chunked")
    return make_trainer(documents([9], [5]), folder, model=factory)._losses.head


def test_a_head_loss_that_the_model_does_not_support_is_refused(tmp_path):
    assert run_ranks(1, _refused, tmp_path) == [None]


def test_liger_without_cuda_is_refused():
    [problem] = SFTTrainer(head_loss=HeadLoss.liger).check_environment()
    assert problem.startswith("head_loss: got liger, but its kernel needs a CUDA GPU")


def test_only_the_full_loss_uses_the_heads_forward():
    assert not SFTTrainer(head_loss="full").reads_head_weight
    assert SFTTrainer().reads_head_weight
