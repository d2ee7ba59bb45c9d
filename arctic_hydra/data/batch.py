"""The batch contract between data, trainer and model.

Shapes: B rows, T tokens per row, K supervised positions of the whole micro-batch, D documents, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
"""Label of a token without loss."""


@dataclass
class Batch:
    """One micro-batch of one rank.

    Packed: B is 1, the documents are concatenated, `position_ids_BT` restarts at each and `cu_seqlens` marks their
    bounds. Padded: one document per row, right-padded, `cu_seqlens` is None. Neither form needs an attention mask:
    attention is causal and padding only follows real tokens.
    """

    input_ids_BT: torch.Tensor
    """int64 token ids."""
    position_ids_BT: torch.Tensor
    """int64, from 0 within each document."""
    rows_K: torch.Tensor
    """int64 indices into the flattened B*T positions whose next token is trained on."""
    targets_K: torch.Tensor
    """int64 token ids to predict at `rows_K`."""
    source_K: torch.Tensor
    """int64 index of the data source of each supervised position."""
    cu_seqlens: torch.Tensor | None = None
    """int32 [D+1] document bounds along T, for packed rows."""
    max_seqlen: int = 0
    """Length of the longest document, in tokens."""
    num_tokens: int = 0
    """Real tokens, padding excluded."""
    num_padding: int = 0
    """Padding tokens."""
    example_ids: list[int] = field(default_factory=list)
    """Indices of the examples in this micro-batch, in order."""
    document_lengths: list[int] = field(default_factory=list)
    """Tokens of each document, in order; for preferences, chosen and rejected alternate within one batch."""
    document_K: torch.Tensor | None = None
    """int64 index of the document of each supervised position, for sums per document such as DPO's."""
    stored: dict[str, torch.Tensor] = field(default_factory=dict)
    """Numbers of each supervised position that were computed before training, [K] or [K, n], by name (`trainer/scoring`)."""
    desirable_D: torch.Tensor | None = None
    """bool, whether the answer of each document is desirable; None for data without labels."""
    margin_P: torch.Tensor | None = None
    """fp32, the margin of each pair, NaN for a pair without one; None where margins are not read."""
    mismatched: Batch | None = None
    """For data with labels: each document's prompt with the answer of another row, in the same order."""

    @property
    def num_supervised(self) -> int:
        """Positions that the loss is computed on (known on the host, without a device synchronization)."""
        return int(self.targets_K.shape[0])

    def only(self, chosen_K: torch.Tensor | slice) -> Batch:
        """Return the batch with only the chosen ones of its supervised positions: a slice, or a bool tensor [K]."""
        documents_K = self.document_K
        return replace(
            self,
            rows_K=self.rows_K[chosen_K],
            targets_K=self.targets_K[chosen_K],
            source_K=self.source_K[chosen_K],
            document_K=None if documents_K is None else documents_K[chosen_K],
            stored={name: values[chosen_K] for name, values in self.stored.items()},
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors, but not those of `mismatched`, on `device` (copied asynchronously if pinned)."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        moved = {k: v.to(device, non_blocking=True) if hasattr(v, "device") else v for k, v in values.items()}
        stored = {name: column.to(device, non_blocking=True) for name, column in self.stored.items()}
        return Batch(**{**moved, "stored": stored})


@dataclass
class StepBatch:
    """The micro-batches of one optimizer step on one rank; every rank has the same number of them."""

    micro_batches: list[Batch]
    step_in_epoch: int
    """Index of this optimizer step within its epoch, from 0."""

    @property
    def num_supervised(self) -> int:
        """Supervised positions of this rank in this step."""
        return sum(batch.num_supervised for batch in self.micro_batches)

    def supervised_by_source(self, num_sources: int) -> list[int]:
        """Return the supervised positions of this rank in this step, for each data source."""
        counts = [batch.source_K.bincount(minlength=num_sources).tolist() for batch in self.micro_batches]
        return [sum(column) for column in zip(*counts, strict=True)]
