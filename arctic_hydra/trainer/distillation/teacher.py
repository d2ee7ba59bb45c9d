"""The teacher of a distillation: a frozen model of any architecture, or the student without its adapter.

Shapes: K supervised positions, H hidden width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from arctic_hydra import determinism, engine
from arctic_hydra.data.batch import Batch
from arctic_hydra.distributed import gathered
from arctic_hydra.errors import ConfigError, ModelError
from arctic_hydra.hub import looks_like_path
from arctic_hydra.model.base import ModelFactory
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.names import VARLEN_ATTENTION
from arctic_hydra.model.ulysses import check_heads, share_positions
from arctic_hydra.tokenizer.loading import TOKENIZER_FILES, load_tokenizer
from arctic_hydra.trainer.chunked import LogitTransform, product_dtype, wide
from arctic_hydra.trainer.distillation.divergence import WholeLogits, of_common_tokens
from arctic_hydra.trainer.distillation.teacher_path import find_directory
from arctic_hydra.trainer.head import evaluating
from arctic_hydra.trainer.isolation import Subject, check_attention, check_causality, check_isolation
from arctic_hydra.trainer.loss import LossComputer, supervised_logits

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from arctic_hydra.trainer.toolbox import Toolbox

KEY = "trainer.teacher_path"


@dataclass(frozen=True)
class FromHidden:
    """A teacher's predictions as hidden states, whose logits are computed for a chunk of rows at a time."""

    hidden_KH: torch.Tensor
    """In the dtype of products with the weight in the teacher's forward pass, which autocast may set."""
    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None
    transform: LogitTransform
    temperature: float

    @contextmanager
    def ready(self, student_VH: torch.Tensor | None) -> Iterator[None]:
        """Gather the weight of the teacher's head, if ZeRO-3 partitions it and it is not the student's, whose pass needs it."""
        own = self.weight_VH is not student_VH
        bias = gathered(self.bias_V) if own and self.bias_V is not None else nullcontext()
        with gathered(self.weight_VH) if own else nullcontext(), bias:
            yield

    def classes(self, part: slice, scaled_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities of the tokens that both models have."""
        return of_common_tokens(scaled_CV, self.logps(part, scaled_CV.shape[-1]))

    def logps(self, part: slice, vocabulary: int) -> torch.Tensor:
        """Return the teacher's log-probabilities over its first `vocabulary` tokens, fp32, at the rows of `part`."""
        with torch.no_grad():
            dtype, bias_V = self.hidden_KH.dtype, self.bias_V
            bias_V = None if bias_V is None else bias_V.to(dtype)
            logits_CV = linear(self.hidden_KH[part], self.weight_VH.to(dtype), bias_V).to(wide(self.weight_VH))
            return (self.transform(logits_CV)[:, :vocabulary] / self.temperature).log_softmax(-1)


@dataclass(frozen=True)
class Teacher:
    """A model that is not trained, or the student's own with its adapter disabled."""

    losses: LossComputer
    temperature: float
    disabled: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Disables the student's adapter."""
    checksum: str = ""
    """Checksum of its weights, if it is a separate model."""

    def targets(self, batch: Batch) -> WholeLogits | FromHidden:
        """Return the predictions at the supervised positions, without dropout. Collective at ZeRO-3."""
        model, head = self.losses.engine, self.losses.head
        projection = []

        def keep(hidden_BTH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
            projection.append((weight_VH, bias_V))
            return hidden_BTH.flatten(0, 1)[batch.rows_K].to(product_dtype(weight_VH))

        with evaluating(model), self.disabled():
            if head is None:
                found: WholeLogits | FromHidden = WholeLogits(supervised_logits(model, batch)[0], self.temperature)
            else:
                hidden_KH = head.run(model, batch, keep)[0]
                found = FromHidden(hidden_KH, *projection[0], head.transform, self.temperature)
        return found


def check_teacher(
    losses: LossComputer, device: torch.device, attention: str, packed: bool, sequence_ranks: int
) -> None:
    """Raise ConfigError for a teacher whose predictions depend on later tokens or on other documents of a row. Collective."""
    subject = Subject(lambda batch: losses.losses(batch)[0].sum(), losses.engine, device, attention, KEY)
    if attention == VARLEN_ATTENTION:
        check_attention(losses.engine, device)
    check_causality(subject)
    if packed or sequence_ranks > 1:
        check_isolation(subject, sequence_ranks)


def teacher_factory(path: str, student: ModelFactory) -> HFModelFactory:
    """Return what creates the teacher, in the dtype of the student and with its attention; no code of its repository runs."""
    return HFModelFactory(
        name_or_path=find_directory(path),
        dtype=student.dtype,
        attn_implementation=student.attn_implementation if student.shares_sequences else VARLEN_ATTENTION,
        disable_activation_checkpoint=True,
    )


def teacher_config(path: str, factory: HFModelFactory, tools: Toolbox, sequence_ranks: int) -> PretrainedConfig:
    """Return the config of the teacher, whose weights are not read.

    Raises ConfigError for other tokens than the student's or too few positions for the data, and ModelError for a config that
    cannot be read.
    """
    student: Any = tools.engine.module
    rows = int(student.config.get_text_config().vocab_size)
    with explained():
        config = factory.create_config()
        check_tokens(path, int(config.get_text_config().vocab_size), rows, tools.state.tokenizer)
        check_positions(path, config, tools.loader.summary().get("max_length"))
        check_heads(config, sequence_ranks)
    return config


def load_teacher(factory: HFModelFactory, config: PretrainedConfig, tools: Toolbox, sequence_ranks: int) -> Any:
    """Return the frozen teacher, sharded at ZeRO-3; the random state stays. Collective.

    Raises ModelError for a model that cannot be loaded.
    """
    with explained(), determinism.kept_random_state(), engine.model_init(tools.engine_config):
        model: Any = factory.create_model(config)
    if sequence_ranks > 1:
        share_positions(model)
    return engine.freeze(model, tools.engine_config, tools.device)


def check_positions(path: str, config: Any, longest: int | None) -> None:
    """Raise ConfigError if rows of `longest` tokens do not fit into the positions of the teacher."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit and longest and longest > limit > 0:
        raise ConfigError(
            f"{KEY}: got {path}, whose config has max_position_embeddings={limit}, but data.max_length={longest}; pass "
            f"data.max_length={limit}, or a teacher with more positions"
        )


def check_tokens(path: str, teacher_rows: int, student_rows: int, tokenizer: Any) -> None:
    """Raise ConfigError if teacher and student do not have the same tokens under the same ids.

    Tokenizers are compared if the teacher has one in its directory, or is on the hub. Different numbers of embedding rows are
    then accepted, as long as both have all tokens: the rows beyond are padding, and are left out.
    """
    name = find_directory(path)
    expected = "expected a teacher with the tokenizer of the student"
    folder = Path(name).expanduser()
    has_own = not looks_like_path(name) or any((folder / file).is_file() for file in TOKENIZER_FILES)
    if tokenizer is not None and has_own:
        theirs, ours = load_tokenizer(name, None).get_vocab(), tokenizer.get_vocab()
        if differing := sorted(theirs.items() ^ ours.items(), key=lambda pair: (pair[1], pair[0])):
            token, number = differing[0]
            raise ConfigError(
                f"{KEY}: got {path}, whose tokenizer differs from the student's ({len(theirs):,} and {len(ours):,} tokens; first at "
                f"id {number}, {token!r}), so the same ids mean other tokens; {expected}"
            )
        if teacher_rows >= len(ours):
            return
    if teacher_rows != student_rows:
        raise ConfigError(
            f"{KEY}: got {path}, whose vocabulary has {teacher_rows:,} rows, and the student's {student_rows:,}; {expected}, and with the "
            "files of its tokenizer if only the padding of the vocabularies differs"
        )


def teacher_bytes(path: str, itemsize: int) -> int:
    """Return the size of the teacher's weights with `itemsize` bytes each, from its config."""
    factory = HFModelFactory(name_or_path=find_directory(path), disable_activation_checkpoint=True)
    with torch.device("meta"):
        model = factory.create_meta_model(factory.create_config())
    parameters: int = sum(parameter.numel() for parameter in model.parameters())
    return itemsize * parameters


@contextmanager
def explained() -> Iterator[None]:
    """Name the teacher in errors of its model and tokenizer."""
    try:
        yield
    except ModelError as error:
        if str(error).startswith(attention := "model.attn_implementation: "):
            text = f"the teacher has the attention of the student (model.attn_implementation), and {str(error).removeprefix(attention)}"
            raise ModelError(f"{KEY}: {text}") from error
        text = str(error).partition(": ")[2] if str(error).startswith(("model", "tokenizer")) else str(error)
        raise ModelError(f"{KEY}: {text}") from error
