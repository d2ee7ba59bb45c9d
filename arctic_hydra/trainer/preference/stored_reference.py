"""A reference whose scores are stored before training, so that it takes neither memory nor time in a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from arctic_hydra import engine
from arctic_hydra.checkpoint.hf import without_adapter
from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import ArcticHydraError, CheckpointError
from arctic_hydra.trainer.head import unwrap
from arctic_hydra.trainer.loss import LossComputer
from arctic_hydra.trainer.scoring.score_identity import scores_depend_on
from arctic_hydra.trainer.scoring.scorer import Compute, Scoring, store_scores

if TYPE_CHECKING:
    from arctic_hydra.trainer.preference.reference import Reference
    from arctic_hydra.trainer.toolbox import Toolbox

LOGP = "logp"
RECORD = np.dtype([(LOGP, "<f4")])
"""What is stored for each supervised position: its log-probability under the reference."""


@dataclass(frozen=True)
class StoredReference:
    """A reference given by its stored scores."""

    checksum: str
    """Checksum of its weights; empty while they are unknown."""

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """Return the loss of each supervised token, fp32 [K], as it was stored."""
        if LOGP not in batch.stored:
            raise ArcticHydraError(
                "trainer.reference: a batch has no stored scores: they are incomplete, or a callback replaced the batch; repeat the "
                "command, or pass trainer.reference=copy"
            )
        return -batch.stored[LOGP]


def stored_reference(
    tools: Toolbox,
    losses: LossComputer,
    reference: Reference | StoredReference,
    copied: Callable[[], Reference],
    folder: Path,
) -> StoredReference:
    """Attach the scores of a reference to the batches, computing those that are missing; return it. Collective.

    `losses` are those of the model. A reference that is not in memory is created by `copied`, and only if it is needed: its
    weights are unknown, or scores are missing. Raises CheckpointError if it then has other weights.
    """
    live: Reference | None = None
    if not isinstance(reference, StoredReference):
        live = reference
    elif not reference.checksum:
        live = copied()
    checksum = reference.checksum if live is None else live.checksum
    adapter_off = live is not None and live.disabled is not nullcontext

    def compute() -> Compute:
        nonlocal live
        model = live = live or copied()
        if model.checksum != checksum:
            raise CheckpointError(
                "trainer.reference: its stored scores are gone, and its weights are not those with which this run began; restore the "
                "files that model, init_from or trainer.reference_path name, or pass fresh=true"
            )
        return lambda batch: {LOGP: -model.token_losses(batch)}

    config, in_chunks = without_adapter(unwrap(losses.engine)).config, losses.head is not None
    about = scores_depend_on(tools, config, checksum, in_chunks=in_chunks, adapter_off=adapter_off)
    store_scores(tools, Scoring(about, RECORD), folder, compute)
    if live is not None and live.losses.engine is not tools.engine:
        engine.release(live.losses.engine)  # a copy is not needed any more
    return StoredReference(checksum)
