"""Reward models: a score for a whole answer, trained on pairs (Bradley and Terry 1952; Ouyang et al. 2022).

Shapes: P pairs, D = 2P documents, of which chosen and rejected ones alternate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import SEQUENCE_CLASSIFIER, component
from arctic_hydra.data.base import BatchGeometry, DataFactory, Loader
from arctic_hydra.data.batch import Batch
from arctic_hydra.data.preference import PreferenceDataFactory
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.model.base import ModelFactory
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.liger import LigerModelFactory
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.score_head import classifier_config
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.trainer.preference.base import PairTrainer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.trainer.toolbox import Toolbox

_MEANS = ("accuracy", "margin", "mean_reward")
"""Means over pairs that are logged, by the names of TRL."""


@component(group="trainer", name="reward")
class RewardTrainer(PairTrainer):
    """Trains a score head on a causal model's last hidden state, so that chosen answers score above rejected ones.

    Dropout is off.
    """

    margin: HumanFloat = number(0.0, minimum=0)
    """Difference of the scores at which the loss of a pair is ln 2, unless the data has a `margin` for the pair."""
    center_rewards_coefficient: HumanFloat = number(0.0, minimum=0)
    """Weight of the squared sum of a pair's scores, which centers them at 0 (Eisenstein et al. 2023: 0.01)."""

    auto_class: ClassVar[str] = SEQUENCE_CLASSIFIER
    model: ClassVar[TinyModelFactory | HFModelFactory | LigerModelFactory | RandomModelFactory]
    evaluation_columns: ClassVar[int] = 8
    evaluation_maxima: ClassVar[int] = 2

    def create_data(
        self, factory: DataFactory, tokenizer: PreTrainedTokenizerBase, geometry: BatchGeometry
    ) -> tuple[Loader, Loader | None]:
        """Return the loaders of pairs, which have the margins of the data."""
        if isinstance(factory, PreferenceDataFactory):
            factory.read_margins()
        return super().create_data(factory, tokenizer, geometry)

    def create_config(self, factory: ModelFactory) -> Any:
        """Return the config of a classifier with one label. Raises ModelError for an architecture without one."""
        return classifier_config(super().create_config(factory))

    def setup(self, tools: Toolbox) -> None:
        """Receive the tools of the run, and turn dropout off; collective.

        Raises ConfigError for a model whose scores cannot be read or trained, or that draws random numbers.
        """
        from arctic_hydra.trainer.preference.dropout import turn_dropout_off
        from arctic_hydra.trainer.preference.reward_head import SequenceScores

        super().setup(tools)
        self._scores = SequenceScores(tools.engine, getattr(tools.state.tokenizer, "pad_token_id", None))
        with self.trial():
            self._scores.check(self.device)
        turn_dropout_off(self)

    @contextmanager
    def with_fake_tensors(self, model: torch.nn.Module) -> Iterator[None]:
        """Let `loss` run on fake tensors, for the memory estimate."""
        from arctic_hydra.trainer.preference.reward_head import SequenceScores

        with super().with_fake_tensors(model):
            self._scores = SequenceScores(model, None)
            yield

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses of the micro-batch's pairs, and add their figures to the next log line."""
        import torch

        losses_P, figures_P3, score_D = self._of_pairs(batch)
        self._loop.totals.add_figures(dict(zip(_MEANS, figures_P3.sum(0), strict=True)))
        infinity = score_D.new_full((1,), torch.inf)  # a rank may have no pair in this micro-batch
        least, greatest = torch.cat([score_D, infinity]).amin(), torch.cat([score_D, -infinity]).amax()
        self._loop.totals.add_extremes({"min_reward": least}, {"max_reward": greatest})
        return losses_P.sum()

    def probed_loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of -log s(score) at the supervised positions: the loss of a pair depends on the scores of both answers.

        All terms are positive, so that differences can be judged relative to the sum.
        """
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self._scores.at(batch, batch.rows_K)).sum()

    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return loss, NaN, pairs and the sums of the figures per source, and the maxima of negative and positive scores, float64."""
        import torch

        losses_P, figures_P3, score_D = self._of_pairs(batch)
        source_P = self.sources_of_pairs(batch)
        one_P = torch.ones_like(losses_P)
        added = torch.stack([losses_P, one_P * torch.nan, one_P, *figures_P3.T], dim=1).double()
        sums = torch.zeros(num_sources, added.shape[1], dtype=torch.float64, device=self.device)
        extremes_D2 = torch.stack([-score_D, score_D], dim=1).double()
        maxima = torch.full((num_sources, 2), -torch.inf, dtype=torch.float64, device=self.device)
        source_D2 = source_P.repeat_interleave(2)[:, None].expand(-1, 2)
        return torch.cat(
            [sums.index_add(0, source_P, added), maxima.scatter_reduce(0, source_D2, extremes_D2, "amax")], dim=1
        )

    def evaluation_metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the mean loss of the pairs, the means of the figures, and the extremes of the scores."""
        loss_sum, _, pairs, *figures, negative, positive = sums
        means = {name: value / pairs for name, value in zip(_MEANS, figures, strict=True)}
        return {"loss": loss_sum / pairs, **means, "min_reward": -negative, "max_reward": positive}

    def _of_pairs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the losses [P] with a graph, accuracy, margin and mean score of each pair [P, 3], and the scores [D]."""
        import torch

        from arctic_hydra.trainer.preference.losses import bradley_terry

        score_D = self._scores.of_documents(batch)[: 2 * self.units(batch)]
        chosen_P, rejected_P = score_D[0::2], score_D[1::2]
        losses_P = bradley_terry(chosen_P, rejected_P, self._margins(batch), self.center_rewards_coefficient)
        score_D = score_D.detach()
        chosen_P, rejected_P = score_D[0::2], score_D[1::2]
        better_P = (chosen_P > rejected_P).to(score_D.dtype)
        figures_P3 = torch.stack([better_P, chosen_P - rejected_P, (chosen_P + rejected_P) / 2], dim=1)
        return losses_P, figures_P3, score_D

    def _margins(self, batch: Batch) -> torch.Tensor | float:
        """Return the margin of each pair, [P], or the one of all pairs."""
        margin = float(self.margin)
        return margin if batch.margin_P is None else batch.margin_P.nan_to_num(nan=margin)
