"""Where a trainer's token losses come from: the fields that SFT and preference training share."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from arctic_hydra.trainer.parts.head_loss import HeadLoss, HeadLossTrainer
from arctic_hydra.trainer.preference.orpo import ORPOTrainer
from arctic_hydra.trainer.sft import SFTTrainer


def test_trainers_of_token_losses_share_the_choice_of_the_head_loss():
    for cls in (SFTTrainer, ORPOTrainer):
        assert issubclass(cls, HeadLossTrainer)
        trainer = cls(head_loss="full", head_chunk_rows=8)
        assert trainer.head_loss is HeadLoss.full and not trainer.reads_head_weight
        assert {"head_loss", "head_chunk_rows"} <= cls.excluded_from_id
        assert cls().reads_head_weight and {"head_loss", "head_chunk_rows"} <= {item.name for item in fields(cls)}


@pytest.mark.parametrize("cls", [SFTTrainer, ORPOTrainer])
def test_on_a_gpu_the_fused_kernel_is_only_for_losses_that_need_no_token_of_their_own(cls, monkeypatch):
    monkeypatch.setattr(cls, "device", torch.device("cuda"))
    assert cls()._uses_liger() == (cls is SFTTrainer)
    assert not cls(head_loss="chunked")._uses_liger()
