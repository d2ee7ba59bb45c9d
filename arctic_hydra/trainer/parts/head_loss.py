"""Losses of tokens from the output head, for trainers of language models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.distributed import count_gpus
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.liger import LigerModelFactory
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.spec import SpecModelFactory
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.trainer.base import Trainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.chunked import TokenLoss
    from arctic_hydra.trainer.loss import LossComputer
    from arctic_hydra.trainer.toolbox import Toolbox

log = logging.getLogger("arctic_hydra.trainer")


class HeadLoss(Enum):
    """How token losses are computed from hidden states."""

    auto = "auto"
    liger = "liger"
    chunked = "chunked"
    full = "full"


@dataclass(kw_only=True)
class HeadLossTrainer(Trainer):
    """Base of the trainers whose loss is made of the losses of tokens."""

    head_loss: HeadLoss = HeadLoss.auto
    """liger (fused, CUDA) and chunked never hold the logits of all supervised tokens, full does. auto: liger on CUDA, else
    chunked; full for an architecture with an unknown head."""
    head_chunk_rows: HumanInt = integer(0, minimum=0)
    """Tokens per chunk of logits with head_loss=chunked and in evaluation; 0 chooses chunks of 64 MiB."""

    model: ClassVar[TinyModelFactory | HFModelFactory | LigerModelFactory | RandomModelFactory | SpecModelFactory]

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
        model = tools.engine.module
        if self._own_loss(model) is None and getattr(model, "token_loss", None) is not None and self.world.is_main:
            log.warning("model.spec: the model's own loss is not used, because the trainer has another one")
        with self.trial():
            self._losses = self._loss_computer(tools.engine)

    @contextmanager
    def with_fake_tensors(self, model: torch.nn.Module) -> Iterator[None]:
        """Let `loss` run on fake tensors, for the memory estimate; the LM head cannot be probed and is assumed to be plain."""
        from arctic_hydra.trainer.head import plain_head
        from arctic_hydra.trainer.loss import LossComputer

        own = self._own_loss(model)
        head = plain_head(model) if self.head_loss is not HeadLoss.full and own is None else None
        with super().with_fake_tensors(model):
            self._losses = LossComputer(model, head, self._token_loss(), False, self.head_chunk_rows, own_loss=own)
            yield

    def _token_loss(self) -> TokenLoss:
        """Return the loss of one token: plain cross-entropy."""
        from arctic_hydra.trainer.chunked import PLAIN

        return PLAIN

    def _own_loss(self, model: torch.nn.Module) -> Callable[..., torch.Tensor] | None:
        """Return the loss of one token that the model brings itself, if this trainer uses it."""
        return None

    def _uses_liger(self) -> bool:
        return self.head_loss is HeadLoss.liger or (self.head_loss is HeadLoss.auto and self.device.type == "cuda")

    def _loss_computer(self, engine: Any) -> LossComputer:
        """Return what computes the losses of an engine, or of a model without one. Collective."""
        from arctic_hydra.trainer.balance import find_balance
        from arctic_hydra.trainer.head import Head, tap_head, unwrap
        from arctic_hydra.trainer.loss import LossComputer

        own = self._own_loss(unwrap(engine))
        head = tap_head(engine, self.device) if self.head_loss is not HeadLoss.full and own is None else None
        if isinstance(head, str):
            if self.head_loss is not HeadLoss.auto:
                raise ConfigError(
                    f"trainer.head_loss: got {self.head_loss.name}, but {head}; pass trainer.head_loss=full"
                )
            log.warning("computing the loss from all supervised logits at once, because %s", head)
            head = None
        assert head is None or isinstance(head, Head)
        balance = find_balance(engine, self.device, self.sequence_parallel_size)
        return LossComputer(engine, head, self._token_loss(), self._uses_liger(), self.head_chunk_rows, balance, own)
