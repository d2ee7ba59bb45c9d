"""Causal language modelling: next-token cross-entropy on every token of plain texts."""

from __future__ import annotations

from typing import ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.trainer.sft import SFTTrainer


@component(group="trainer", name="causal")
class CausalTrainer(SFTTrainer):
    """Trains on every token; the loss is that of supervised fine-tuning, the data decides what is supervised."""

    data: ClassVar[CausalDataFactory]  # type: ignore[assignment]  # a declaration of its own, see cross_checks
