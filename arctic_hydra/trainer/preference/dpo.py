"""Direct preference optimization (Rafailov et al. 2023) and the losses of its family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra import distributed
from arctic_hydra.component import component
from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import CheckpointError, ConfigError, FieldError, did_you_mean
from arctic_hydra.files.ownership import unwritable
from arctic_hydra.human_numbers import HumanFloat, number
from arctic_hydra.trainer.preference.base import PreferenceTrainer
from arctic_hydra.trainer.preference.choices import PAIR_LOSS_NAMES, PER_TOKEN, SMOOTHED, ReferenceKind

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.preference.reference import Reference
    from arctic_hydra.trainer.preference.scores import Pairs
    from arctic_hydra.trainer.preference.stored_reference import StoredReference
    from arctic_hydra.trainer.toolbox import Toolbox

_SFT = "sft"
_EXO_SMOOTHING = 1e-3


@component(group="trainer", name="dpo")
class DPOTrainer(PreferenceTrainer):
    """Raises the probability of chosen answers over rejected ones, relative to a reference model."""

    loss_type: Any = "sigmoid"
    """sigmoid (DPO; with label smoothing cDPO), sigmoid_norm, ipo, hinge, robust, apo_zero, apo_down, exo_pair; or a list of
    them, to which sft adds the cross-entropy of the chosen answers."""
    loss_weights: list[float] = field(default_factory=list)
    """Weight of each loss in `loss_type`; 1 for each if empty."""
    label_smoothing: HumanFloat | None = number(None, minimum=0, maximum=0.5)
    """Assumed share of pairs with swapped labels: for sigmoid, robust and exo_pair. Unset: 0, for exo_pair 0.001."""
    ld_alpha: HumanFloat | None = number(None, minimum=0, maximum=1)
    """Weight of the tokens beyond the length of the pair's shorter answer (LD-DPO); unset: 1."""
    reference: ReferenceKind = ReferenceKind.auto
    """copy: a frozen copy of the model as the run starts, sharded like it; adapter_off: the model without its adapter;
    auto: the latter if only a new adapter is trained, else copy; cached: scores of what auto selects, stored before training."""
    reference_path: str | None = None
    """Weights of another reference of the same architecture: an export, a checkpoint or a run directory, as in init_from."""
    scores_dir: str | None = None
    """Directory of stored scores with `reference=cached` and `task=score`; that of the data cache when unset."""

    can_store_scores: ClassVar[bool] = True
    excluded_from_id: ClassVar[frozenset[str]] = PreferenceTrainer.excluded_from_id | {"scores_dir"}

    def validate(self) -> None:
        """Check the losses and their settings."""
        super().validate()
        problems = list(self._problems())
        if problems:
            raise FieldError(problems)

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if there is no directory with the weights of the reference."""
        if self.reference_path is not None and not Path(self.reference_path).is_dir():
            yield (
                f"reference_path: got {self.reference_path}, which is not a directory; expected an export, a checkpoint or a run directory"
            )
        yield from unwritable("scores_dir", self.scores_dir)
        yield from super().check_environment()

    @property
    def loss_types(self) -> list[str]:
        """The losses that are added up."""
        return list(self.loss_type) if isinstance(self.loss_type, list) else [self.loss_type]

    @property
    def nll_weight(self) -> float:
        """Weight of the cross-entropy of the chosen answers."""
        return sum(weight for name, weight in self._weighted() if name == _SFT)

    @property
    def tail_weight(self) -> float | None:
        """Weight of the tokens beyond the length of the pair's shorter answer: `ld_alpha`."""
        return None if self.ld_alpha is None else float(self.ld_alpha)

    def frozen_models(self, model: torch.nn.Module) -> int:
        """Return 1 for a copy, 0 if the model without its adapter is the reference, or its scores are stored."""
        from arctic_hydra.trainer.preference.reference import why_not_adapter_off

        if self.stores_scores:
            return 0
        copies = self.reference is ReferenceKind.copy or self.reference_path is not None
        return int(copies or bool(why_not_adapter_off(model)))

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
        """Let `prepare` store the scores of the reference."""
        self.reference = ReferenceKind.cached

    def prepare(self) -> None:
        """With `reference=cached`, compute the scores that are missing, and let the batches have them. Collective."""
        from arctic_hydra.trainer.preference.stored_reference import stored_reference

        if self.stores_scores:
            folder = Path(self.scores_dir).absolute() if self.scores_dir else self.tools.cache_directory
            assert folder is not None, "checked for every config"
            self._reference = stored_reference(self.tools, self._losses, self._reference, self._copy, folder)

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

    def reference_pairs(self, batch: Batch) -> Pairs:
        """Return the scores under the reference."""
        return self.score(batch, -self._reference.token_losses(batch))

    def pair_losses(self, pairs: Pairs, reference: Pairs | None) -> tuple[torch.Tensor, Pairs]:
        """Return the weighted sum of the losses of each pair, and beta times the scores less those of the reference."""
        import torch

        from arctic_hydra.trainer.preference.losses import PAIR_LOSSES

        assert reference is not None
        gained = pairs.less(reference)
        losses_P = [
            weight * PAIR_LOSSES[name](gained, self.beta, self._smoothing(name))
            for name, weight in self._weighted()
            if name != _SFT
        ]
        return torch.stack(losses_P).sum(0), gained.scaled(self.beta)

    def _weighted(self) -> Iterator[tuple[str, float]]:
        return zip(self.loss_types, self.loss_weights or [1.0] * len(self.loss_types), strict=True)

    def _smoothing(self, name: str) -> float:
        if self.label_smoothing is None:
            return _EXO_SMOOTHING if name == "exo_pair" else 0.0
        return float(self.label_smoothing)

    def _problems(self) -> Iterator[tuple[str, str]]:
        names, known = self.loss_types, [*PAIR_LOSS_NAMES, _SFT]
        for name in names:
            if name not in known:
                near = did_you_mean(name, known) if isinstance(name, str) else ""
                yield "loss_type", f"got {name}, expected one or a list of {', '.join(known)}{near}"
                return
        if len(set(names)) < len(names) or not set(names) - {_SFT}:
            yield (
                "loss_type",
                f"got {names}, expected at least one loss of pairs, each once; for sft alone pass trainer=sft",
            )
            return
        if self.loss_weights and len(self.loss_weights) != len(names):
            yield (
                "loss_weights",
                f"got {len(self.loss_weights)} weights for {len(names)} losses in loss_type, expected one for each",
            )
        elif any(not weight > 0 or weight == float("inf") for weight in self.loss_weights):
            yield "loss_weights", f"got {self.loss_weights}, expected finite numbers above 0"
        yield from self._smoothing_problems([name for name in names if name != _SFT])
        if self.ld_alpha is not None and (found := sorted(PER_TOKEN.intersection(names))):
            yield (
                "ld_alpha",
                f"got {self.ld_alpha:g}, but {found[0]} takes the mean over tokens, not their sum; leave it unset",
            )
        if self.reference_path is not None and self.reference in (ReferenceKind.copy, ReferenceKind.adapter_off):
            yield (
                "reference",
                f"got {self.reference.value}, but reference_path names the reference; set only one of them",
            )

    def _smoothing_problems(self, names: list[str]) -> Iterator[tuple[str, str]]:
        smoothing = self.label_smoothing
        if smoothing is None:
            return
        if without := [name for name in names if name not in SMOOTHED]:
            yield (
                "label_smoothing",
                f"got {smoothing:g}, but {without[0]} has none; leave it unset, or use {', '.join(sorted(SMOOTHED))}",
            )
        elif "exo_pair" in names and not 0 < smoothing < 0.5:
            yield (
                "label_smoothing",
                f"got {smoothing:g}, expected above 0 and below 0.5 for exo_pair, whose loss takes its logarithm",
            )
        elif smoothing >= 0.5:
            yield (
                "label_smoothing",
                f"got {smoothing:g}, expected below 0.5: at half, a pair does not say which answer is better",
            )

    def _create_reference(self, tools: Toolbox) -> Reference | StoredReference:
        from arctic_hydra.checkpoint.full_weights import checksum
        from arctic_hydra.trainer.preference.reference import Reference, names_without_adapter, why_not_adapter_off
        from arctic_hydra.trainer.preference.stored_reference import StoredReference

        problem = why_not_adapter_off(tools.engine.module)
        if self.reference is ReferenceKind.adapter_off and problem:
            raise ConfigError(f"trainer.reference: got adapter_off, but {problem}; pass trainer.reference=copy")
        shares = self.reference is ReferenceKind.adapter_off or (
            self.reference is not ReferenceKind.copy and not tools.starts_from_adapter
        )
        losses, model = replace(self._losses, balance=None), tools.engine.module
        if shares and not problem and self.reference_path is None:
            found = checksum(model, names_without_adapter(model)) if self.stores_scores else ""
            return Reference(losses, model.disable_adapter, found)
        if not self.stores_scores:
            return self._copy()
        if self.global_step or self.reference_path is not None or tools.evaluates:
            return StoredReference("")
        return Reference(losses, checksum=checksum(model, [name for name, _ in model.named_parameters()]))

    def _copy(self) -> Reference:
        """Return a frozen copy of the model as the run starts, or of the weights that `reference_path` names. Collective."""
        from arctic_hydra import engine
        from arctic_hydra.checkpoint.full_weights import checksum
        from arctic_hydra.trainer.head import unwrap
        from arctic_hydra.trainer.preference.reference import Reference

        tools = self.tools
        frozen = engine.freeze(tools.create_model(self.reference_path), tools.engine_config, self.device)
        with self.trial():
            losses = replace(self._loss_computer(frozen), balance=None)
        model = unwrap(frozen)
        return Reference(losses, nullcontext, checksum(model, [name for name, _ in model.named_parameters()]))

    def _check_start(self, start: Reference) -> None:
        """Raise ConfigError if model and reference score a few tokens differently before the first step. Collective."""
        from arctic_hydra.trainer.head import probe_batch, probing

        batch = probe_batch(self.tools.engine.module, self.device)
        with self.trial(), probing(self.tools.engine):
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
