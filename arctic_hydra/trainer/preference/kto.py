"""Kahneman-Tversky optimization (Ethayarajh et al. 2024).

Shapes: K supervised positions, D documents, each with one labelled answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from arctic_hydra import distributed
from arctic_hydra.component import component
from arctic_hydra.data.batch import Batch, StepBatch
from arctic_hydra.data.unpaired import UnpairedDataFactory
from arctic_hydra.errors import FieldError
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.trainer.preference.reference import ReferenceTrainer, losses_without_graph

if TYPE_CHECKING:
    import torch

    from arctic_hydra.data.base import Loader

_SIDES = ("chosen", "rejected")
_SUMS = ("desirable", "kl", *(f"{kind}/{side}" for kind in ("rewards", "logps") for side in _SIDES))
"""Sums over rows: the number of desirable ones, the KL term, and what is averaged over the rows of one label."""


@component(group="trainer", name="kto")
class KTOTrainer(ReferenceTrainer):
    """Raises the probability of desirable answers and lowers that of undesirable ones, relative to a reference model.

    The loss of a step is the mean over all its rows. The KL term is the mean over all mismatched pairs of the step, known
    before the first micro-batch's loss; in evaluation, over all of the evaluation data.
    """

    desirable_weight: HumanFloat = number(1.0, minimum=0)
    """Weight of the losses of desirable answers; above 0."""
    undesirable_weight: HumanFloat = number(1.0, minimum=0)
    """Weight of the losses of undesirable answers; above 0."""

    data: ClassVar[UnpairedDataFactory]
    evaluation_columns: ClassVar[int] = 3 + len(_SUMS)

    def validate(self) -> None:
        """Check that both labels count."""
        super().validate()
        for name in ("desirable_weight", "undesirable_weight"):
            if not getattr(self, name):
                label = name.removesuffix("_weight")
                raise FieldError([(name, f"got 0, with which {label} answers are not trained on; expected above 0")])

    def __post_init__(self) -> None:
        super().__post_init__()
        self._kl: torch.Tensor | None = None

    def units(self, batch: Batch) -> int:
        """Return the number of rows."""
        return 0 if batch.desirable_D is None else len(batch.desirable_D)

    def prepare_step(self, window: StepBatch, counts: dict[str, int]) -> None:
        """Compute the KL term of the whole step."""
        if counts["units"]:
            self._kl = self._mean_kl(window.micro_batches)

    def prepare_evaluation(self, loader: Loader) -> None:
        """Compute the KL term of the evaluation data. Collective."""
        self._kl = self._mean_kl(batch for window in loader.windows(0) for batch in window.micro_batches)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses of the micro-batch's rows, and add their figures to the next log line."""
        losses_D, sums_D, balance = self._scored(batch)
        self._loop.totals.add_figures({name: values_D.sum() for name, values_D in sums_D.items()})
        return losses_D.sum() + balance

    def logged_figures(self, sums: dict[str, float], units: int) -> dict[str, float]:
        """Return the means over the rows of each label; those of a label without rows are left out."""
        return _means(sums, units) if sums else {}

    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return sums per data source, float64: loss, NaN, rows, and `_SUMS`."""
        import torch

        losses_D, sums_D, _ = self._scored(batch)
        sums = torch.zeros(num_sources, self.evaluation_columns, dtype=torch.float64, device=self.device)
        one_D = torch.ones_like(losses_D)
        assert batch.document_K is not None
        source_D = batch.source_K.new_zeros(len(one_D)).index_copy(0, batch.document_K, batch.source_K)
        columns = [losses_D, one_D * torch.nan, one_D, *sums_D.values()]
        return sums.index_add_(0, source_D, torch.stack(columns, dim=1).double())

    def evaluation_metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the mean loss of the rows and the figures of each label."""
        loss_sum, _, rows, *figures = sums
        return {"loss": loss_sum / rows, **_means(dict(zip(_SUMS, figures, strict=True)), rows)}

    def _scored(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor | float]:
        """Return the losses of the rows, fp32 [D] with a graph, `_SUMS` [D], and the load-balancing loss."""
        import torch

        from arctic_hydra.trainer.preference.losses import kto
        from arctic_hydra.trainer.preference.sequence_logps import score_documents

        rows, desirable_D, kl = self.units(batch), batch.desirable_D, self._kl
        assert batch.document_K is not None and desirable_D is not None and kl is not None
        reference_D = score_documents(self.reference_logps(batch), batch.document_K, rows)
        losses_K, router_loss = self._losses.losses(batch)
        logp_D = score_documents(-losses_K, batch.document_K, rows)
        gained_D = logp_D - reference_D
        weight_D = torch.where(desirable_D, float(self.desirable_weight), float(self.undesirable_weight))
        losses_D = weight_D * kto(gained_D, desirable_D, kl, self.beta)
        of_label = [
            (kind_D.detach(), own_D)
            for kind_D in (self.beta * gained_D, logp_D)
            for own_D in (desirable_D, ~desirable_D)
        ]
        figures = [torch.where(own_D, kind_D, 0.0) for kind_D, own_D in of_label]
        sums = [desirable_D.to(losses_D.dtype), kl.expand(rows), *figures]
        balance = self._losses.balance_term(router_loss, rows)
        return losses_D, dict(zip(_SUMS, sums, strict=True)), balance

    def _mean_kl(self, batches: Iterable[Batch]) -> torch.Tensor:
        """Return the mean score of the mismatched pairs of all ranks less that of the reference, at least 0, fp32. Collective."""
        import torch

        losses = replace(self._losses, balance=None)
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            assert batch.mismatched is not None
            pairs = batch.mismatched.to(self.device)
            gained_K = -losses_without_graph(losses, pairs) - self.reference_logps(pairs)
            total[0] += gained_K.double().sum()
            total[1] += self.units(batch)
        gained, rows = distributed.sum_tensor(total)
        return (gained / rows).clamp(min=0).float()


def _means(sums: dict[str, float], rows: float) -> dict[str, float]:
    """Return the means of `_SUMS` over all rows or, of rewards and scores, over those of a label that has any."""
    of_side = dict(zip(_SIDES, (sums["desirable"], rows - sums["desirable"]), strict=True))
    means = {
        name: value / of_side[side]
        for name, value in sums.items()
        if (side := name.partition("/")[2]) and of_side[side]
    }
    if all(of_side.values()):
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return {**means, "kl": sums["kl"] / rows}
