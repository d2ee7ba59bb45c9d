"""A teacher whose most likely tokens are stored before training, so that it takes neither memory nor time in a step.

Shapes: K supervised positions, N most likely tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash

from arctic_hydra import distributed, engine
from arctic_hydra.data.batch import Batch
from arctic_hydra.distributed import World
from arctic_hydra.errors import ArcticHydraError, ConfigError, ModelError
from arctic_hydra.hub import looks_like_path
from arctic_hydra.model.hf import hub_arguments, load_error
from arctic_hydra.redaction import umask_of_user
from arctic_hydra.trainer.chunked import default_chunk_rows
from arctic_hydra.trainer.distillation.divergence import MostLikely
from arctic_hydra.trainer.distillation.teacher import KEY, Teacher, explained, teacher_config, teacher_factory
from arctic_hydra.trainer.distillation.teacher_path import find_directory
from arctic_hydra.trainer.parts.head_loss import HeadLoss
from arctic_hydra.trainer.scoring.score_identity import scores_depend_on
from arctic_hydra.trainer.scoring.scorer import Compute, Scoring, store_scores

if TYPE_CHECKING:
    from arctic_hydra.trainer.distillation.distill import DistillTrainer
    from arctic_hydra.trainer.toolbox import Toolbox

_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")
"""Files of weights with their index; transformers loads the first kind that there is."""
_BLOCK_BYTES = 2**24
IDS, LOGPS, TAIL = "ids", "logps", "tail"


def record(count: int) -> np.dtype[Any]:
    """Return what is stored for each supervised position: `count` tokens, their log-probabilities, and that of all others."""
    return np.dtype([(IDS, "<i4", (count,)), (LOGPS, "<f4", (count,)), (TAIL, "<f4")])


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher given by its stored most likely tokens."""

    checksum: str
    """Of the files of its weights."""
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


def stored_teacher(tools: Toolbox, path: str, count: int) -> StoredTeacher:
    """Return the teacher in `path`, whose weights are not loaded. Collective.

    Raises ConfigError for a teacher that does not fit the student, or if there are fewer than `count` tokens.
    """
    student: Any = tools.engine.module
    config = teacher_config(path, teacher_factory(path, tools.model_factory), tools, sequence_ranks=1)
    vocabulary = min(int(one.get_text_config().vocab_size) for one in (student.config, config))
    if count > vocabulary:
        raise ConfigError(
            f"trainer.top_k: got {count:,}, but student and teacher have {vocabulary:,} tokens; expected at most as many, such as 64"
        )
    # On every rank, because a download may outlast the timeout of a collective.
    files = weight_files(find_directory(path))
    return StoredTeacher(weights_hash(files, tools.world), vocabulary)


def store_predictions(trainer: DistillTrainer, stored: StoredTeacher, load: Callable[[], Teacher]) -> None:
    """Attach the most likely tokens of a teacher to the batches of a trainer; `load` it only to compute those that are missing.

    Its weights are freed afterwards. Collective.
    """
    loaded: list[Teacher] = []

    def compute() -> Compute:
        loaded.append(load())
        return lambda batch: most_likely(loaded[0], batch, trainer.top_k, stored.vocabulary)

    assert trainer.teacher_path is not None, "checked for every config"
    factory = teacher_factory(trainer.teacher_path, trainer.tools.model_factory)
    its_own = replace(trainer.tools, model_factory=factory, converters=[])
    in_chunks = trainer.head_loss is not HeadLoss.full
    about = {
        **scores_depend_on(its_own, factory.create_config(), stored.checksum, in_chunks=in_chunks),
        "temperature": float(trainer.temperature),
        "vocabulary": stored.vocabulary,
    }
    store_scores(trainer.tools, Scoring(about, record(trainer.top_k)), trainer.scores_directory, compute)
    for teacher in loaded:
        engine.release(teacher.losses.engine)


def weight_files(name: str) -> list[Path]:
    """Return the files of the weights of a directory, or of a hub id, which are downloaded if they are not in the cache.

    Raises ModelError if they cannot be, or if there are none.
    """
    for pattern in _WEIGHTS:
        folder = Path(name).expanduser() if looks_like_path(name) else _downloaded(name, pattern)
        if files := sorted(folder.glob(pattern)):
            return files
    raise ModelError(
        f"{KEY}: {name} holds no files of weights, expected model.safetensors or pytorch_model.bin; check the directory"
    )


def _downloaded(name: str, pattern: str) -> Path:
    from huggingface_hub import snapshot_download

    with explained():
        try:
            with umask_of_user():
                return Path(snapshot_download(name, allow_patterns=pattern, **hub_arguments(name, None)))
        except OSError as error:
            raise load_error(name, error) from error


def weights_hash(files: list[Path], world: World) -> str:
    """Return a hash of the names and contents of files, which are read whole, since their dates do not tell. Collective.

    Unlike `content_hash`, it does not need the model in memory; each rank reads a part of the files. Raises ConfigError for one
    that cannot be read.
    """
    mine = {file.name: _file_hash(file) for file in files[world.rank :: world.size]}
    found = sorted(item for part in distributed.gather_objects(mine) for item in part.items())
    return xxhash.xxh3_64_hexdigest(json.dumps(found).encode())


def _file_hash(file: Path) -> str:
    digest = xxhash.xxh3_64()
    try:
        with file.open("rb") as content:
            while block := content.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise ConfigError(f"{KEY}: cannot read {file} ({error.strerror}); check the file") from error
    return digest.hexdigest()
