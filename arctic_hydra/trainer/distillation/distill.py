"""Knowledge distillation (Hinton et al. 2015) on the supervised tokens of the data, from a teacher that predicts them too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.batch import Batch
from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.errors import CheckpointError, ConfigError, FieldError
from arctic_hydra.human_numbers import HumanFloat, HumanInt, integer, number
from arctic_hydra.metrics import token_metrics
from arctic_hydra.trainer.distillation.teacher_path import path_problem
from arctic_hydra.trainer.parts.head_loss import HeadLoss
from arctic_hydra.trainer.preference.reference import why_not_adapter_off
from arctic_hydra.trainer.scoring.scoring_trainer import ScoringTrainer

if TYPE_CHECKING:
    import torch

    from arctic_hydra.trainer.distillation.distillation_loss import Distilled, Mix
    from arctic_hydra.trainer.distillation.stored_teacher import StoredTeacher
    from arctic_hydra.trainer.distillation.teacher import Teacher
    from arctic_hydra.trainer.toolbox import Toolbox


class TeacherKind(Enum):
    """Which model is the teacher."""

    model = "model"
    adapter_off = "adapter_off"
    cached = "cached"


@component(group="trainer", name="distill")
class DistillTrainer(ScoringTrainer):
    """Trains a student to predict what a teacher predicts. Dropout is off."""

    teacher: TeacherKind = TeacherKind.model
    """model: that of `teacher_path`; adapter_off: the student without its adapter; cached: the most likely tokens of
    the model of `teacher_path`, stored before training, which then holds no teacher."""
    teacher_path: str | None = None
    """Hub id or directory of a model of any architecture with the student's tokenizer, or a run with an export of one."""
    beta: HumanFloat = number(0.0, minimum=0, maximum=1)
    """0: KL(teacher||student); 1: KL(student||teacher); between: generalized Jensen-Shannon divergence."""
    temperature: HumanFloat = number(1.0, minimum=0)
    """Divides the logits of both models in the divergence, which is multiplied by its square; above 0."""
    ce_share: HumanFloat = number(0.0, minimum=0, maximum=1)
    """Share of the loss that is the cross-entropy of the data's tokens; below 1."""
    top_k: HumanInt = integer(64, minimum=1)
    """Number of tokens stored for each supervised token with `teacher=cached` and `task=score`; at most the vocabulary."""

    frozen_setting: ClassVar[str] = "teacher"
    score_settings: ClassVar[tuple[str, ...]] = (*ScoringTrainer.score_settings, "top_k")
    data: ClassVar[SFTDataFactory | CausalDataFactory]
    evaluation_columns: ClassVar[int] = 5

    def validate(self) -> None:
        """Check the settings of the loss and of the teacher."""
        super().validate()
        if problems := list(self._problems()):
            raise FieldError(problems)

    def _problems(self) -> Iterator[tuple[str, str]]:
        adapter_off = self.teacher is TeacherKind.adapter_off
        if not self.temperature:
            yield "temperature", "got 0, by which the logits are divided; expected a number above 0, such as 1"
        if self.ce_share == 1:
            yield "ce_share", "got 1, with which the teacher has no effect; expected below 1, or pass trainer=sft"
        if self.teacher_path is None and not adapter_off:
            yield (
                "teacher_path",
                "not set; expected the hub id or the directory of a model, or pass trainer.teacher=adapter_off",
            )
        if self.teacher_path is not None and adapter_off:
            yield "teacher", "got adapter_off, but teacher_path names the teacher; set only one of them"
        if adapter_off and not self.ce_share:
            yield (
                "ce_share",
                "got 0, but with teacher=adapter_off a new adapter begins at the minimum of the divergence, so nothing would be learned; "
                "expected above 0",
            )
        if self.head_loss is HeadLoss.liger:
            yield (
                "head_loss",
                "got liger, whose kernel computes the cross-entropy only; expected auto, chunked or full",
            )
        if self.stores_scores and (problem := self._storing_problem()):
            yield problem

    def _storing_problem(self) -> tuple[str, str] | None:
        if self.teacher is TeacherKind.adapter_off:
            return (
                "teacher",
                "got adapter_off, whose predictions cannot be stored; expected trainer.teacher_path=<model>",
            )
        if self.sequence_parallel_size > 1:
            return "sequence_parallel_size", (
                f"got {self.sequence_parallel_size}, but predictions are stored for whole sequences; expected 1, or train with "
                "trainer.teacher=model"
            )
        return None

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if a local path holds no model."""
        if self.teacher_path is not None and (problem := path_problem(self.teacher_path)):
            yield f"teacher_path: {problem}"
        yield from super().check_environment()

    @property
    def mix(self) -> Mix:
        """What the loss of a token is made of."""
        from arctic_hydra.trainer.distillation.distillation_loss import Mix

        return Mix(float(self.beta), float(self.temperature), float(self.ce_share))

    def frozen_bytes(self, model: torch.nn.Module) -> int:
        """Return the size of the teacher's weights, in the student's dtype; 0 if training holds no separate teacher."""
        return 0 if self.stores_scores else self._teacher_bytes(model)

    def scoring_bytes(self, model: torch.nn.Module) -> int:
        """Return the size of the weights of a teacher that is dropped before training."""
        return self._teacher_bytes(model) if self.stores_scores else 0

    def _teacher_bytes(self, model: torch.nn.Module) -> int:
        from arctic_hydra.trainer.distillation.teacher import teacher_bytes

        itemsize = next(parameter for parameter in model.parameters() if parameter.is_floating_point()).itemsize
        return 0 if self.teacher_path is None else teacher_bytes(self.teacher_path, itemsize)

    @property
    def stores_scores(self) -> bool:
        """Whether the predictions of the teacher are computed before training."""
        return self.teacher is TeacherKind.cached

    def store_scores(self) -> None:
        """Make `prepare` store the predictions of the teacher. Raises ConfigError if they cannot be stored."""
        if problem := self._storing_problem():
            raise ConfigError("trainer.{}: {}".format(*problem))
        self.teacher = TeacherKind.cached

    def setup(self, tools: Toolbox) -> None:
        """Receive the tools of the run, load the teacher unless its predictions are stored, and turn dropout off. Collective.

        Raises ConfigError for a teacher that does not fit the student, and for a student that draws random numbers, ModelError
        for a teacher that cannot be loaded.
        """
        from arctic_hydra.trainer.preference.dropout import turn_dropout_off

        super().setup(tools)
        self._teacher: Teacher | StoredTeacher = self._create_teacher(tools)
        turn_dropout_off(self)

    def prepare(self) -> None:
        """With `teacher=cached`, compute the predictions that are missing, and attach them to the batches. Collective.

        The teacher is loaded only if there are any, and dropped afterwards. Raises ConfigError and ModelError as `setup` does.
        """
        from arctic_hydra.trainer.distillation.stored_teacher import StoredTeacher, store_predictions

        if isinstance(self._teacher, StoredTeacher):
            store_predictions(self, self._teacher, self._load_teacher)

    def state_dict(self) -> dict[str, Any]:
        """Return the checksum of the teacher."""
        return {"teacher": self._teacher.checksum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError if the teacher has other weights than when the run began."""
        if state["teacher"] != self._teacher.checksum:
            raise CheckpointError(
                f"trainer.teacher_path: the weights in {self.teacher_path} are not those with which this run began, so the losses "
                "before and after would not compare; restore them, or pass fresh=true"
            )

    @contextmanager
    def with_fake_tensors(self, model: torch.nn.Module) -> Iterator[None]:
        """Let the loss run on fake tensors, with the student as its own teacher."""
        from arctic_hydra.trainer.distillation.teacher import Teacher

        with super().with_fake_tensors(model):
            self._teacher = Teacher(self._losses, float(self.temperature))
            yield

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses of the micro-batch's tokens, and add its parts to the next log line."""
        found = self._distilled(batch)
        self._loop.totals.add_figures({"kd_loss": found.divergences_K.sum(), "nll_loss": found.nlls_K.sum()})
        return found.loss + self._losses.balance_term(found.router_loss, batch.num_supervised)

    def probed_loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses and the cross-entropies, which also shows a leak where both models predict the same.

        With a stored teacher, the sum of the student's cross-entropies.
        """
        from arctic_hydra.trainer.distillation.stored_teacher import StoredTeacher

        losses = self._losses
        self._losses = replace(losses, balance=None)
        try:
            if isinstance(self._teacher, StoredTeacher):  # it has predictions for the documents of the data only
                return self._losses.losses(batch)[0].sum()
            found = self._distilled(batch)
        finally:
            self._losses = losses
        return found.loss + found.nlls_K.sum()

    def evaluation_sums(self, batch: Batch, num_sources: int) -> torch.Tensor:
        """Return sums per source, float64: loss, correct tokens, tokens, divergence and cross-entropy."""
        import torch

        found = self._distilled(batch)
        columns = [
            found.losses_K,
            found.correct_K,
            torch.ones_like(found.losses_K),
            found.divergences_K,
            found.nlls_K,
        ]
        sums = torch.zeros(num_sources, self.evaluation_columns, dtype=torch.float64, device=self.device)
        return sums.index_add_(0, batch.source_K, torch.stack(columns, dim=1).double())

    def evaluation_metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the mean loss and its parts, and the perplexity and accuracy of the data's tokens."""
        loss_sum, correct, tokens, divergence_sum, nll_sum = sums
        of_data = token_metrics(nll_sum, correct, tokens)
        return {**of_data, "loss": loss_sum / tokens, "kd_loss": divergence_sum / tokens, "nll_loss": of_data["loss"]}

    def _uses_liger(self) -> bool:
        return False

    def _distilled(self, batch: Batch) -> Distilled:
        from arctic_hydra.trainer.distillation.distillation_loss import distill

        return distill(self._losses, batch, self._teacher.targets(batch), self.mix)

    def _create_teacher(self, tools: Toolbox) -> Teacher | StoredTeacher:
        from arctic_hydra.checkpoint.full_weights import content_hash
        from arctic_hydra.trainer.distillation.stored_teacher import stored_teacher
        from arctic_hydra.trainer.distillation.teacher import Teacher
        from arctic_hydra.trainer.head import unwrap

        if self.teacher_path is None:
            student = tools.engine.module
            if problem := why_not_adapter_off(student):
                raise ConfigError(
                    f"trainer.teacher: got adapter_off, but {problem}; pass trainer.teacher_path=<model> instead"
                )
            return Teacher(replace(self._losses, balance=None), float(self.temperature), student.disable_adapter)
        if self.stores_scores:
            return stored_teacher(tools, self.teacher_path, self.top_k)
        teacher = self._load_teacher()
        return replace(teacher, checksum=content_hash(unwrap(teacher.losses.engine)))

    def _load_teacher(self) -> Teacher:
        from arctic_hydra.trainer.distillation.teacher import (
            Teacher,
            check_teacher,
            explained,
            load_teacher,
            teacher_config,
            teacher_factory,
        )

        assert self.teacher_path is not None, "adapter_off has none"
        tools, ranks = self.tools, self.sequence_parallel_size
        factory = teacher_factory(self.teacher_path, tools.model_factory)
        config = teacher_config(self.teacher_path, factory, tools, ranks)
        frozen = load_teacher(factory, config, tools, ranks)
        with self.trial(), explained():
            losses = replace(self._loss_computer(frozen), balance=None)
            check_teacher(losses, self.device, factory.attn_implementation, tools.packed, ranks)
        return Teacher(losses, float(self.temperature))
