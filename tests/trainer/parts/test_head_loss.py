"""Where a trainer's token losses come from: the fields that SFT and preference training share."""

from __future__ import annotations

from dataclasses import fields

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
