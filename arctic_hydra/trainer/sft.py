"""Supervised fine-tuning: next-token cross-entropy on the tokens that the data marks as supervised."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.batch import Batch
from arctic_hydra.component import component
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.liger import LigerModelFactory
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.trainer.base import Trainer

if TYPE_CHECKING:
    import torch


@component(group="trainer", name="sft")
class SFTTrainer(Trainer):
    """Trains on the assistant's answers."""

    model: ClassVar[TinyModelFactory | HFModelFactory | LigerModelFactory]
    data: ClassVar[SFTDataFactory]

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy summed over the supervised tokens of the micro-batch."""
        from arctic_hydra.trainer import loss

        # Liger's forward chooses the same positions of every row, which fits the one row of a packed batch only.
        one_row = batch.input_ids_BT.shape[0] == 1
        if self.tools.model_factory.fused_loss and batch.num_supervised and one_row:
            return loss.fused_token_loss_sum(self.tools.engine, batch)
        return loss.token_loss_sum(self.tools.engine, batch)

    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return loss, correct tokens and count per source, float64 [num_sources, 3]."""
        from arctic_hydra.trainer import loss

        return loss.token_sums(self.tools.engine, batch, num_sources)
