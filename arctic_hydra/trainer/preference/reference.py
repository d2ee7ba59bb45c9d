"""The reference of a preference loss: the model that the policy is compared with, which is not trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import distributed, engine
from arctic_hydra.checkpoint.initial_weights import is_full_model_export
from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import CheckpointError, ConfigError, FieldError
from arctic_hydra.files.start_paths import start_problem
from arctic_hydra.trainer.preference.base import AnswerTrainer
from arctic_hydra.trainer.preference.choices import ReferenceKind
from arctic_hydra.trainer.scoring.scoring_trainer import ScoringTrainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.loss import LossComputer
    from arctic_hydra.trainer.preference.stored_reference import StoredReference
    from arctic_hydra.trainer.toolbox import Toolbox


@dataclass(frozen=True)
class Reference:
    """A frozen copy of the model, or the trained model with its adapter disabled."""

    losses: LossComputer
    disabled: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Disables the adapter of the model."""
    checksum: str = ""
    """Checksum of the weights of a copy."""

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """Return the loss of each supervised token, fp32 [K], without dropout and without a graph. Collective."""
        with self.disabled():
            return losses_without_graph(self.losses, batch)


def losses_without_graph(losses: LossComputer, batch: Batch) -> torch.Tensor:
    """Return the loss of each supervised token, fp32 [K], in the model's evaluation mode and without a graph. Collective."""
    from arctic_hydra.trainer.head import evaluating

    with evaluating(losses.engine):
        return losses.losses(batch)[0]


def why_not_adapter_off(model: torch.nn.Module) -> str:
    """Return why the model with its adapter disabled cannot be the reference; empty if it can."""
    from arctic_hydra.trainer.head import unwrap

    inner: Any = unwrap(model)
    if not hasattr(inner, "disable_adapter"):
        return "the model has no adapter"
    head = inner.get_output_embeddings()
    if hasattr(head, "modules_to_save") or getattr(head, "token_adapter", None) is not None:
        return "the adapter replaces the output head"
    # Weights of the model itself, such as biases with peft.bias=all, stay trained with the adapter disabled.
    counts = outside_adapter(inner)
    if own := [name for name, value in inner.named_parameters() if counts(name) and value.requires_grad]:
        return f"the run also trains weights of the model itself, such as {own[0]}"
    return ""


def outside_adapter(inner: Any) -> Callable[[str], bool]:
    """Return whether, by its name, a tensor of a model with an adapter is used when the adapter is disabled."""
    added = (getattr(inner.base_model, "prefix", None) or "\0", "modules_to_save.", "token_adapter.")
    return lambda name: not any(part in name for part in added)


@dataclass(kw_only=True)
class ReferenceTrainer(ScoringTrainer, AnswerTrainer):
    """Base of the trainers that compare the model with a reference."""

    reference: ReferenceKind = ReferenceKind.auto
    """copy: a frozen copy of the model as the run starts, sharded like it; adapter_off: the model without its adapter;
    auto: the latter if only a new adapter is trained, else copy; cached: scores of what auto selects, stored before training."""
    reference_path: str | None = None
    """Weights of another reference of the same architecture: an export, a checkpoint or a run directory, as in init_from."""

    def validate(self) -> None:
        """Check that at most one setting names the reference."""
        super().validate()
        if self.reference_path is not None and self.reference in (ReferenceKind.copy, ReferenceKind.adapter_off):
            text = f"got {self.reference.value}, but reference_path names the reference; set only one of them"
            raise FieldError([("reference", text)])

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if there is no directory with the weights of the reference."""
        if self.reference_path is not None and (problem := start_problem(self.reference_path)):
            yield f"reference_path: {problem}"
        yield from super().check_environment()

    def frozen_models(self, model: torch.nn.Module) -> int:
        """Return 1 for a copy, 0 if the model without its adapter is the reference, or its scores are stored."""
        if self.stores_scores:
            return 0
        return int(not self._prefers_adapter_off or bool(why_not_adapter_off(model)))

    def scoring_models(self, model: torch.nn.Module) -> int:
        """Return 1 if the reference has other weights than the model at its start."""
        return int(self.stores_scores and self.reference_path is not None)

    def setup(self, tools: Toolbox) -> None:
        """Receive the tools of the run, and create the reference. Collective.

        Raises ConfigError if the reference cannot be what `reference` says, or differs from the model at its start.
        """
        from arctic_hydra.trainer.preference.stored_reference import StoredReference

        super().setup(tools)
        self._reference = self._create_reference(tools)
        if self.global_step == 0 and self.reference_path is None and not isinstance(self._reference, StoredReference):
            self._check_start(self._reference)

    @property
    def stores_scores(self) -> bool:
        """Whether the scores of the reference are computed before training."""
        return self.reference is ReferenceKind.cached

    def store_scores(self) -> None:
        """Make `prepare` store the scores of the reference."""
        self.reference = ReferenceKind.cached

    def prepare(self) -> None:
        """With `reference=cached`, compute the scores that are missing, and attach them to the batches. Collective."""
        from arctic_hydra.trainer.preference.stored_reference import stored_reference

        if self.stores_scores:
            self._reference = stored_reference(
                self.tools, self._losses, self._reference, self._copy, self.scores_directory
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the checksum of a copied reference."""
        return {"reference": self._reference.checksum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError if the reference has other weights than when the run began."""
        if not self._reference.checksum and self.stores_scores:  # the weights are loaded only if scores are missing
            from arctic_hydra.trainer.preference.stored_reference import StoredReference

            self._reference = StoredReference(state["reference"])
        if state["reference"] != self._reference.checksum:
            raise CheckpointError(
                "trainer.reference: its weights are not those with which this run began, so the losses before and after would "
                "not compare; restore the files that model, init_from or trainer.reference_path name, or pass fresh=true"
            )

    def reference_logps(self, batch: Batch) -> torch.Tensor:
        """Return the log-probability of each supervised token under the reference, fp32 [K], without a graph. Collective."""
        return -self._reference.token_losses(batch)

    @property
    def _prefers_adapter_off(self) -> bool:
        """Whether the model without its adapter is the reference if it can be: not for an adapter that is trained already."""
        if self.reference is ReferenceKind.copy or self.reference_path is not None:
            return False
        start = self.initial_weights
        return self.reference is ReferenceKind.adapter_off or start is None or is_full_model_export(Path(start))

    def _create_reference(self, tools: Toolbox) -> Reference | StoredReference:
        from arctic_hydra.checkpoint.full_weights import content_hash
        from arctic_hydra.trainer.preference.stored_reference import StoredReference

        problem = why_not_adapter_off(tools.engine.module)
        if self.reference is ReferenceKind.adapter_off and problem:
            raise ConfigError(f"trainer.reference: got adapter_off, but {problem}; pass trainer.reference=copy")
        losses, model = replace(self._losses, balance=None), tools.engine.module
        if self._prefers_adapter_off and not problem:
            found = content_hash(model, outside_adapter(model)) if self.stores_scores else ""
            return Reference(losses, model.disable_adapter, found)
        if not self.stores_scores:
            return self._copy()
        if self.global_step or self.reference_path is not None or tools.evaluates:
            return StoredReference("")
        return Reference(losses, checksum=content_hash(model))

    def _copy(self) -> Reference:
        """Return a frozen copy of the model as the run starts, or of the weights that `reference_path` names. Collective."""
        from arctic_hydra.checkpoint.full_weights import content_hash
        from arctic_hydra.trainer.head import unwrap

        tools = self.tools
        try:
            model = tools.create_model(self.reference_path)
        except CheckpointError as error:
            if self.reference_path is None:
                raise
            raise CheckpointError(f"trainer.reference_path: {str(error).removeprefix('init_from: ')}") from error
        frozen = engine.freeze(model, tools.engine_config, self.device)
        with self.trial(unwrap(frozen)):
            losses = replace(self._loss_computer(frozen), balance=None)
        return Reference(losses, nullcontext, content_hash(unwrap(frozen)))

    def _check_start(self, start: Reference) -> None:
        """Raise ConfigError if model and reference score a few tokens differently before the first step. Collective."""
        from arctic_hydra.trainer.head import probe_batch, probing, unwrap

        batch = probe_batch(self.tools.engine.module, self.device)
        scored = unwrap(start.losses.engine)
        copies = [] if scored is self.tools.engine.module else [scored]
        with self.trial(*copies), probing(self.tools.engine):
            model = float(self.probed_loss(batch))
            reference = float(start.token_losses(batch).sum())
        if distributed.sum_over_ranks([int(abs(model - reference) > 1e-3 * abs(model))])[0]:
            raise ConfigError(
                f"trainer.reference: without its adapter the model differs from the model at its start (losses {reference:.6g} and "
                f"{model:.6g} of the same tokens), because the adapter does not begin at zero; pass trainer.reference=copy"
                if start.disabled is not nullcontext
                else f"trainer.reference: a second model, created in the same way, differs from the first (losses {reference:.6g} and "
                f"{model:.6g} of the same tokens); pass trainer.reference_path=<weights of the start>"
            )
