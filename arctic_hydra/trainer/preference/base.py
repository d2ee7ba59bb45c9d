"""Bases of the trainers that learn from scores of answers, and from pairs of a chosen and a rejected one.

Shapes: K supervised positions, P pairs, D = 2P documents, of which chosen and rejected ones alternate.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from arctic_hydra import distributed
from arctic_hydra.data.batch import Batch, StepBatch
from arctic_hydra.data.preference import PreferenceDataFactory
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.trainer.base import Trainer
from arctic_hydra.trainer.parts.head_loss import HeadLoss, HeadLossTrainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.preference.sequence_logps import Pairs
    from arctic_hydra.trainer.toolbox import Toolbox

FIGURES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
)
"""Means over pairs that are logged, by the names of TRL; logits are means over the vocabulary and the answer's tokens."""


def is_chosen(batch: Batch) -> torch.Tensor:
    """Return whether each supervised position belongs to a chosen answer, bool [K]."""
    assert batch.document_K is not None
    return batch.document_K % 2 == 0


def refuse_shared_sequences(trainer: Trainer) -> None:
    """Raise ValueError if ranks are to share sequences."""
    if trainer.sequence_parallel_size > 1:
        raise ValueError(
            f"sequence_parallel_size: got {trainer.sequence_parallel_size}, but ranks that share sequences would each score parts "
            "of the answers; expected 1 for preference training"
        )


@dataclass(kw_only=True)
class AnswerTrainer(HeadLossTrainer):
    """Base of the trainers that compare scores of answers, which are sums of the log-probabilities of their tokens.

    Dropout is off, in a reference too.
    """

    beta: HumanFloat = number(0.1, minimum=0)
    """Scale of the differences of log-probabilities; above 0."""

    def validate(self) -> None:
        super().validate()
        if not self.beta:
            raise ValueError(
                "beta: got 0, with which the loss does not depend on the answers; expected a number above 0"
            )
        if self.head_loss is HeadLoss.liger:
            raise ValueError(
                "head_loss: got liger, whose kernel gives no log-probability per token; expected auto, chunked or full"
            )
        refuse_shared_sequences(self)

    def setup(self, tools: Toolbox) -> None:
        """Receive the tools of the run, and turn dropout off. Raises ConfigError if the model still draws random numbers."""
        from arctic_hydra.trainer.preference.dropout import turn_dropout_off

        super().setup(tools)
        turn_dropout_off(self)

    def probed_loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the token losses, from which scores are computed; the loss itself may depend on several answers."""
        losses_K: torch.Tensor = replace(self._losses, balance=None).losses(batch)[0]
        return losses_K.sum()

    def _uses_liger(self) -> bool:
        return False  # its kernel gives the sum of the losses only


@dataclass(frozen=True)
class PairLosses:
    """The losses of the pairs of a micro-batch."""

    losses_P: torch.Tensor
    """fp32, with a graph."""
    figures: dict[str, torch.Tensor]
    """Figures of each pair, [P], without a graph."""
    logps_K: torch.Tensor
    """fp32, with a graph."""
    balance: torch.Tensor | float
    """The load-balancing loss of a mixture of experts, once per pair."""


@dataclass(kw_only=True)
class PairTrainer(Trainer):
    """Base of the trainers that compare the answers of pairs: the loss of a step is the mean over all its pairs."""

    data: ClassVar[PreferenceDataFactory]

    def validate(self) -> None:
        super().validate()
        refuse_shared_sequences(self)

    def units(self, batch: Batch) -> int:
        """Return the number of pairs."""
        return len(batch.document_lengths) // 2

    def sources_of_pairs(self, batch: Batch) -> torch.Tensor:
        """Return the data source of each pair, int64 [P]."""
        assert batch.document_K is not None
        source_D = batch.source_K.new_zeros(2 * self.units(batch)).index_copy(0, batch.document_K, batch.source_K)
        return source_D[0::2]


@dataclass(kw_only=True)
class PreferenceTrainer(PairTrainer, AnswerTrainer):
    """Base of the preference trainers: the loss of a step is the mean over all its pairs; a subclass defines `pair_losses`.

    If `nll_weight` is not 0, the mean cross-entropy of all tokens of the step's chosen answers is added with that weight.
    """

    own_figures: ClassVar[tuple[str, ...]] = ()
    """Names of what `more_figures` returns."""
    evaluation_columns: ClassVar[int] = 5 + len(FIGURES)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._chosen_per_pair = 1.0

    @property
    def nll_weight(self) -> float:
        """Weight of the cross-entropy of the chosen answers."""
        return 0.0

    @property
    def tail_weight(self) -> float | None:
        """Weight of the tokens beyond the length of the pair's shorter answer; None: they count like the others."""
        return None

    @abstractmethod
    def pair_losses(self, pairs: Pairs, reference: Pairs | None) -> tuple[torch.Tensor, Pairs]:
        """Return the loss of each pair, fp32 [P], and the rewards that are logged, as scores.

        `pairs` holds the scores under the model, with a graph, `reference` those under the reference, if there is one.
        """

    def more_figures(self, pairs: Pairs) -> tuple[torch.Tensor, ...]:
        """Return figures of each pair, [P], that only this trainer logs, from the scores under the model."""
        return ()

    def reference_pairs(self, batch: Batch) -> Pairs | None:
        """Return the scores under the reference, None for a loss without one; called before the model's own forward pass."""
        return None

    def score(self, batch: Batch, logps_K: torch.Tensor) -> Pairs:
        """Return the scores of the batch's pairs from the log-probabilities of their tokens."""
        from arctic_hydra.trainer.preference.sequence_logps import score_pairs

        assert batch.document_K is not None
        return score_pairs(logps_K, batch.document_K, self.units(batch), self.tail_weight)

    def prepare_step(self, window: StepBatch, counts: dict[str, int]) -> None:
        """Count the chosen tokens of the whole step if the loss has a term of them."""
        if self.nll_weight and counts["units"]:
            mine = sum(int(is_chosen(batch).sum()) for batch in window.micro_batches)
            self._chosen_per_pair = distributed.sum_over_ranks([mine])[0] / counts["units"]

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses of the micro-batch's pairs, and add their figures to the next log line."""
        import torch

        scored = self._scored(batch)
        loss = scored.losses_P.sum() + scored.balance
        sums = {name: values_P.sum() for name, values_P in scored.figures.items()}
        if self.nll_weight:
            nll = -torch.where(is_chosen(batch), scored.logps_K, 0.0).sum() / self._chosen_per_pair
            loss = loss + self.nll_weight * nll
            sums["nll_loss"] = nll.detach()
        self._loop.totals.add_figures(sums)
        return loss

    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return sums per data source, float64: loss, NaN, pairs, chosen tokens, their cross-entropy, and the figures."""
        import torch

        scored = self._scored(batch)
        sums = torch.zeros(num_sources, self.evaluation_columns, dtype=torch.float64, device=self.device)
        chosen_K = is_chosen(batch)
        one_P, nll_K = torch.ones_like(scored.losses_P), -scored.logps_K[chosen_K]
        of_pairs = [scored.losses_P, one_P * torch.nan, one_P, one_P * 0, one_P * 0, *scored.figures.values()]
        sums.index_add_(0, self.sources_of_pairs(batch), torch.stack(of_pairs, dim=1).double())
        of_tokens = torch.stack([torch.ones_like(nll_K), nll_K], dim=1).double()
        sums[:, 3:5].index_add_(0, batch.source_K[chosen_K], of_tokens)
        return sums

    def evaluation_metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the mean loss of the pairs, the mean cross-entropy of the chosen tokens, and the figures."""
        loss_sum, _, pairs, tokens, nll_sum, *figures = sums
        nll = nll_sum / tokens
        means = {name: value / pairs for name, value in zip(self._figures, figures, strict=True)}
        return {"loss": loss_sum / pairs + self.nll_weight * nll, "nll_loss": nll, **means}

    @property
    def _figures(self) -> tuple[str, ...]:
        return (*FIGURES, *self.own_figures)

    def _scored(self, batch: Batch) -> PairLosses:
        import torch

        from arctic_hydra.trainer.preference.sequence_logps import score_pairs

        reference = self.reference_pairs(batch)
        logits_K = torch.empty(batch.num_supervised, dtype=torch.float32, device=self.device)
        losses_K, router_loss = self._losses.losses(batch, logits_K)
        pairs = self.score(batch, -losses_K)
        assert batch.document_K is not None
        logits = score_pairs(logits_K, batch.document_K, self.units(batch)).means()
        losses_P, rewards = self.pair_losses(pairs, reference)
        of_pairs = (
            rewards.chosen.score_P,
            rewards.rejected.score_P,
            (rewards.chosen.score_P > rewards.rejected.score_P).to(losses_P.dtype),
            rewards.chosen.score_P - rewards.rejected.score_P,
            pairs.chosen.score_P,
            pairs.rejected.score_P,
            logits.chosen.score_P,
            logits.rejected.score_P,
            *self.more_figures(pairs),
        )
        figures = {name: values_P.detach() for name, values_P in zip(self._figures, of_pairs, strict=True)}
        balance = self._losses.balance_term(router_loss, self.units(batch))
        return PairLosses(losses_P, figures, -losses_K, balance)
