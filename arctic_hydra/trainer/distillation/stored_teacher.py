"""A teacher whose most likely tokens are stored before training, so that it takes neither memory nor time in a step.

Shapes: K supervised positions, N most likely tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from arctic_hydra import engine
from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.trainer.chunked import default_chunk_rows
from arctic_hydra.trainer.distillation.divergence import MostLikely
from arctic_hydra.trainer.distillation.teacher import Teacher, teacher_factory
from arctic_hydra.trainer.head import unwrap
from arctic_hydra.trainer.scoring.score_identity import scores_depend_on
from arctic_hydra.trainer.scoring.scorer import Compute, Scoring, store_scores

if TYPE_CHECKING:
    from arctic_hydra.trainer.toolbox import Toolbox

IDS, LOGPS, TAIL = "ids", "logps", "tail"


def record(count: int) -> np.dtype[Any]:
    """Return what is stored for each supervised position: `count` tokens, their log-probabilities, and that of all others."""
    return np.dtype([(IDS, "<i4", (count,)), (LOGPS, "<f4", (count,)), (TAIL, "<f4")])


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher given by its stored most likely tokens."""

    checksum: str
    """Of its weights."""
    vocabulary: int
    """Number of tokens that student and teacher have."""

    def targets(self, batch: Batch) -> MostLikely:
        """Return the predictions at the supervised positions, as they were stored."""
        if IDS not in batch.stored:
            raise ArcticHydraError(
                "trainer.teacher: a batch has no stored predictions: they are incomplete, or a callback replaced the batch; repeat "
                "the command, or pass trainer.teacher=model"
            )
        return MostLikely(batch.stored[IDS], batch.stored[LOGPS], batch.stored[TAIL], self.vocabulary)


def most_likely(teacher: Teacher, batch: Batch, count: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Return the fields of `record(count)` for each supervised position, from the first `vocabulary` tokens. Collective."""
    targets, rows, device = teacher.targets(batch), batch.num_supervised, batch.targets_K.device
    found = {
        IDS: torch.empty(rows, count, dtype=torch.int32, device=device),
        LOGPS: torch.empty(rows, count, device=device),
        TAIL: torch.empty(rows, device=device),
    }
    step = teacher.losses.chunk_rows or default_chunk_rows(vocabulary)
    with targets.ready(None), torch.no_grad():
        for start in range(0, rows, step):
            part = slice(start, start + step)
            logps_CV = targets.logps(part, vocabulary)
            found[LOGPS][part], ids_CN = logps_CV.topk(count)
            found[IDS][part] = ids_CN
            # Not log(1 - sum), which loses the digits of a small rest.
            found[TAIL][part] = logps_CV.scatter_(1, ids_CN, -math.inf).logsumexp(-1)
    return found


def stored_teacher(tools: Toolbox, path: str, teacher: Teacher, count: int, folder: Path) -> StoredTeacher:
    """Attach the `count` most likely tokens of a teacher, loaded from `path`, to the batches; return it. Collective.

    Predictions that are missing are computed, and the weights of the teacher freed. Raises ConfigError if there are fewer than
    `count` tokens.
    """
    models: list[Any] = [unwrap(tools.engine), unwrap(teacher.losses.engine)]
    vocabulary = min(int(model.config.get_text_config().vocab_size) for model in models)
    if count > vocabulary:
        raise ConfigError(
            f"trainer.top_k: got {count:,}, but student and teacher have {vocabulary:,} tokens; expected at most as many, such as 64"
        )

    def compute() -> Compute:
        return lambda batch: most_likely(teacher, batch, count, vocabulary)

    its_own = replace(tools, model_factory=teacher_factory(path, tools.model_factory), converters=[])
    about = {
        **scores_depend_on(its_own, teacher.losses, teacher.checksum, adapter_off=False),
        "temperature": teacher.temperature,
        "vocabulary": vocabulary,
    }
    store_scores(tools, Scoring(about, record(count)), folder, compute)
    engine.release(teacher.losses.engine)
    return StoredTeacher(teacher.checksum, vocabulary)
