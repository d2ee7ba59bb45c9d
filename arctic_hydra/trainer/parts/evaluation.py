"""Evaluation over all examples, weighted by supervised units.

Shapes: K supervised positions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra import display, distributed
from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import ConfigError
from arctic_hydra.metrics import evaluation_metrics, token_metrics
from arctic_hydra.trainer.parts.bookkeeping import Bookkeeping

if TYPE_CHECKING:
    import torch

    from arctic_hydra.data.base import Loader
    from arctic_hydra.trainer.toolbox import Toolbox


@dataclass(kw_only=True)
class Evaluation(Bookkeeping):
    """Evaluates the loss and the trainer's other metrics."""

    evaluation_columns: ClassVar[int] = 3
    """Columns of `evaluation_sums`; a subclass with more of them reads them in `evaluation_metrics`."""
    evaluation_maxima: ClassVar[int] = 0
    """How many of these columns, the last ones, hold maxima instead of sums; -infinity for a source without units."""

    @abstractmethod
    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the SUM of the losses of the micro-batch's supervised units, a scalar with a graph.

        `step` divides by the number of units over all micro-batches and ranks of the optimizer step, so every unit
        has the same weight wherever it occurs. A batch without units returns 0, still with a graph. `evaluation_sums`
        calls it too, without a graph, in the model's evaluation mode.
        """

    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return float64 [num_sources, 3]: sum of losses, correct predictions and number of units, per data source.

        By default the sums of `loss`, with NaN for the correct predictions: the evaluation then has a loss, but neither
        accuracy nor perplexity. A batch with several sources takes one forward pass for each.
        """
        import torch

        assert self.evaluation_columns == 3, f"{type(self).__name__} has additional columns, but no evaluation_sums"
        self._refuse_sources(num_sources)
        sums = torch.zeros(num_sources, 3, dtype=torch.float64, device=self.device)
        sums[:, 1] = torch.nan
        for source in range(num_sources):
            part = batch if num_sources == 1 else batch.only(batch.source_K == source)
            sums[source, 0], sums[source, 2] = self.loss(part).double(), self.units(part)
        return sums

    def setup(self, tools: Toolbox) -> None:
        """Receive the tools of the run. Raises ConfigError for evaluation sources that `evaluation_sums` cannot tell apart."""
        super().setup(tools)
        if tools.eval_loader is not None and type(self).evaluation_sums is Evaluation.evaluation_sums:
            self._refuse_sources(len(tools.eval_loader.source_names))

    def _refuse_sources(self, count: int) -> None:
        if count > 1 and type(self).units is not Bookkeeping.units:  # units of other sources would be counted
            raise ConfigError(
                f"trainer: {type(self).__name__} counts its own units and has no `evaluation_sums`, so the {count} evaluation "
                "sources cannot be told apart; define `evaluation_sums`, or pass one source"
            )

    def prepare_evaluation(self, loader: Loader) -> None:
        """Compute the statistics over all examples that the losses need; called without a graph before the first loss. Collective."""

    def evaluation_metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the metrics of sums over all evaluation examples: the columns of `evaluation_sums`, with a number of units."""
        return token_metrics(*sums)

    def evaluate(self) -> dict[str, Any]:
        """Return the loss per unit over all evaluation examples, with perplexity and accuracy if the trainer counts them."""
        loader = self.tools.eval_loader
        if loader is None or self._loop.evaluated_at == self.global_step:
            return self.last_evaluation
        import torch

        names = loader.source_names
        about = f"at step {self.global_step}"
        with (
            self._loop.totals.untimed(),
            display.phase("evaluate", about, unit="batches", total=loader.steps(0), transient=True) as phase,
            self.event("evaluate", loader=loader, engine=self.tools.engine) as facts,
        ):
            self.tools.engine.eval()
            added = self.evaluation_columns - self.evaluation_maxima
            sums = torch.zeros(len(names), added, dtype=torch.float64, device=self.device)
            maxima = torch.full_like(sums.new_empty(len(names), self.evaluation_maxima), -torch.inf)
            with torch.no_grad():
                self.prepare_evaluation(loader)
                for window in loader.windows(0):
                    for batch in window.micro_batches:
                        found = self.evaluation_sums(batch.to(self.device), len(names))
                        sums += found[:, :added]
                        maxima = torch.maximum(maxima, found[:, added:])
                    phase.advance()
            # At ZeRO-3, weights fetched ahead for a pass that does not follow could not be gathered, as for an export.
            self.tools.engine.empty_partition_cache()
            whole = [
                distributed.sum_tensor(sums),
                *([distributed.max_tensor(maxima)] if self.evaluation_maxima else []),
            ]
            rows = torch.cat(whole, dim=1).tolist()
            values = evaluation_metrics(rows, names, self.evaluation_metrics, self.evaluation_maxima)
            self.last_evaluation = facts["metrics"] = {"step": self.global_step, **values}
        self._loop.evaluated_at = self.global_step
        self.last_evaluation = self.tools.state.evaluation = facts["metrics"]
        if self.world.is_main and not self.tools.evaluates:  # a callback may add a metric on this rank only
            for engine in self.tools.checkpoints:
                engine.check_evaluation(self.last_evaluation)
        self._record(self._offered({**self.last_evaluation, "epoch": self._epoch_position()}))
        if self.prints_evaluation(self.global_step):
            self.tools.display.evaluation(self.last_evaluation, phase.seconds)
        return self.last_evaluation
