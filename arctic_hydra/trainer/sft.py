"""Supervised fine-tuning: next-token cross-entropy on the tokens that the data marks as supervised."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.batch import Batch
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.distributed import count_gpus
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.liger import LigerModelFactory
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.spec import SpecModelFactory
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.trainer.base import Trainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.loss import LossComputer
    from arctic_hydra.trainer.toolbox import Toolbox

log = logging.getLogger(__name__)


class HeadLoss(Enum):
    """How token losses are computed from hidden states."""

    auto = "auto"
    liger = "liger"
    chunked = "chunked"
    full = "full"


@component(group="trainer", name="sft")
class SFTTrainer(Trainer):
    """Trains on the assistant's answers."""

    label_smoothing: HumanFloat = number(0.0, minimum=0, maximum=1)
    """Share of the target probability that is spread over the vocabulary; training only."""
    z_loss: HumanFloat = number(0.0, minimum=0)
    """Weight of the squared logsumexp of each token's logits (PaLM: 1e-4); training only."""
    head_loss: HeadLoss = HeadLoss.auto
    """liger (fused, CUDA) and chunked never hold the logits of all supervised tokens, full does. auto: liger on CUDA, else
    chunked; full for an architecture with an unknown head."""
    head_chunk_rows: HumanInt = integer(0, minimum=0)
    """Tokens per chunk of logits with head_loss=chunked and in evaluation; 0 chooses chunks of 64 MiB."""

    model: ClassVar[TinyModelFactory | HFModelFactory | LigerModelFactory | RandomModelFactory | SpecModelFactory]
    data: ClassVar[SFTDataFactory]

    excluded_from_id: ClassVar[frozenset[str]] = Trainer.excluded_from_id | {"head_loss", "head_chunk_rows"}

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if Liger's kernel is chosen and there is no CUDA device."""
        if self.head_loss is HeadLoss.liger and count_gpus() == 0:
            yield "head_loss: got liger, but its kernel needs a CUDA GPU and this machine has none; pass trainer.head_loss=auto"
        yield from super().check_environment()

    @property
    def head_loss_name(self) -> str:
        """How the loss is computed from the hidden states: `head_loss`."""
        return self.head_loss.name

    @property
    def reads_head_weight(self) -> bool:
        """Whether the loss reads the LM head's weight directly, which bypasses an adapter on the head."""
        return self.head_loss is not HeadLoss.full

    def setup(self, tools: Toolbox) -> None:
        """Receive the tools of the run, and find the model's LM head; collective."""
        super().setup(tools)
        with self.trial():
            self._losses = self._loss_computer(tools)

    @contextmanager
    def with_fake_tensors(self, model: torch.nn.Module) -> Iterator[None]:
        """Let `loss` run on fake tensors, for the memory estimate; the LM head cannot be probed and is assumed to be plain."""
        from arctic_hydra.trainer.chunked import TokenLoss
        from arctic_hydra.trainer.head import plain_head
        from arctic_hydra.trainer.loss import LossComputer

        own = getattr(model, "token_loss", None)
        head = plain_head(model) if self.head_loss is not HeadLoss.full and own is None else None
        with super().with_fake_tensors(model):
            self._losses = LossComputer(
                model, head, TokenLoss(self.label_smoothing, self.z_loss), False, self.head_chunk_rows, own_loss=own
            )
            yield

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the token losses summed over the supervised tokens of the micro-batch."""
        return self._losses.loss_sum(batch)

    def probed_loss(self, batch: Batch) -> torch.Tensor:
        """Return `loss`, also that of a subclass, without the load-balancing loss of a mixture of experts, which is over all tokens."""
        losses = self._losses
        self._losses = replace(losses, balance=None)
        try:
            return self.loss(batch)
        finally:
            self._losses = losses

    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return plain cross-entropy, correct tokens and count per source, float64 [num_sources, 3]."""
        return self._losses.evaluation_sums(batch, num_sources)

    def _loss_computer(self, tools: Toolbox) -> LossComputer:
        from arctic_hydra.trainer.balance import find_balance
        from arctic_hydra.trainer.chunked import TokenLoss
        from arctic_hydra.trainer.head import Head, tap_head
        from arctic_hydra.trainer.loss import LossComputer

        own = getattr(tools.engine.module, "token_loss", None)
        if own is not None:
            self._check_own_loss()
        head = tap_head(tools.engine, tools.device) if self.head_loss is not HeadLoss.full and own is None else None
        if isinstance(head, str):
            if self.head_loss is not HeadLoss.auto:
                raise ConfigError(
                    f"trainer.head_loss: got {self.head_loss.name}, but {head}; pass trainer.head_loss=full"
                )
            log.warning("computing the loss from all supervised logits at once, because %s", head)
            head = None
        liger = self.head_loss is HeadLoss.liger or (self.head_loss is HeadLoss.auto and tools.device.type == "cuda")
        losses = TokenLoss(self.label_smoothing, self.z_loss)
        assert head is None or isinstance(head, Head)
        balance = find_balance(tools.engine, tools.device, self.sequence_parallel_size)
        return LossComputer(tools.engine, head, losses, liger, self.head_chunk_rows, balance, own)

    def _check_own_loss(self) -> None:
        """Raise ConfigError for settings that a model with a loss of its own would ignore."""
        usual = {"label_smoothing": 0.0, "z_loss": 0.0}
        ignored = [
            f"trainer.{name}={getattr(self, name):g}" for name, value in usual.items() if getattr(self, name) != value
        ]
        if self.head_loss not in (HeadLoss.auto, HeadLoss.full):
            ignored.append(f"trainer.head_loss={self.head_loss.name}")
        if ignored:
            raise ConfigError(
                f"model.spec: this model brings its own loss, which ignores {', '.join(ignored)}; leave it out"
            )
