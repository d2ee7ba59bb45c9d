"""Causal language modeling: next-token cross-entropy on every token of plain text."""

from __future__ import annotations

from typing import ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.trainer.sft import SFTTrainer


@component(group="trainer", name="causal")
class CausalTrainer(SFTTrainer):
    """Trains on every token, with the loss of supervised fine-tuning; the data marks what is supervised."""

    data: ClassVar[CausalDataFactory]  # type: ignore[assignment]  # its own declaration, see cross_checks
