"""From a plan of packs to the micro-batches of each optimizer step.

Step s takes packs [s*G, (s+1)*G) of the order, where G is the global batch size. Slot i of a step goes to micro-batch
i // (micro_batch_size * ranks) of rank (i // micro_batch_size) % ranks. The sequence of global batches therefore does not
depend on micro-batch size, accumulation and ranks; they only determine how each global batch is divided.

Shapes: B rows, T tokens per row, K supervised positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from arctic_hydra.data.arrays import Array, Ints
from arctic_hydra.data.base import BatchGeometry
from arctic_hydra.data.batch import Batch, StepBatch
from arctic_hydra.data.cache.token_store import PairStore
from arctic_hydra.data.documents import Documents, Examples
from arctic_hydra.data.load.mismatched import LabelledStore
from arctic_hydra.data.load.order import balanced
from arctic_hydra.data.load.packing import Plan


@dataclass(frozen=True)
class BatchOptions:
    """How packs become batches."""

    packing: bool
    pad_token_id: int


class StepBatches:
    """The packs of one plan in one order, divided into the steps of this rank."""

    def __init__(
        self,
        store: Examples,
        plan: Plan,
        order: Ints,
        geometry: BatchGeometry,
        options: BatchOptions,
        fused: Array | None = None,
    ) -> None:
        """Serve packs; the documents of a pack p with `fused[p]` become one document, in which they attend to each other."""
        self._store, self._plan, self._order, self._fused = store, plan, order, fused
        self._geometry, self._options = geometry, options
        squares = store.lengths[plan.examples].astype(np.float64) ** 2
        self._costs = np.add.reduceat(squares, plan.bounds[:-1]) if len(plan) else squares

    def __len__(self) -> int:
        return -(-len(self._order) // self._geometry.global_batch_size)

    def step_batch(self, step: int) -> StepBatch:
        """Return this rank's micro-batches of one step; the last step may have fewer packs than the others."""
        geometry = self._geometry
        packs = self._order[step * geometry.global_batch_size : (step + 1) * geometry.global_batch_size]
        if geometry.world.size > 1:
            packs = balanced(packs, self._costs, geometry.micro_batch_size, geometry.world.size)
        per_micro = geometry.micro_batch_size * geometry.world.size
        batches = []
        for first in range(0, len(packs), per_micro):
            mine = first + geometry.world.rank * geometry.micro_batch_size
            stop = min(mine + geometry.micro_batch_size, first + per_micro)
            batches.append(self._batch(packs[mine:stop]))
        return StepBatch(batches, step_in_epoch=step)

    def _batch(self, packs: Ints) -> Batch:
        by_pack = [
            [document for example in self._plan.pack(int(pack)) for document in self._store.documents(int(example))]
            for pack in packs
        ]
        documents = [document for pack in by_pack for document in pack]
        batch = self._batch_of(self._store.flat, documents, self._joined(packs, by_pack))
        if isinstance(self._store, LabelledStore):
            batch.desirable_D = torch.from_numpy(self._store.labels[documents].astype(bool))
            batch.mismatched = self._batch_of(self._store.mismatched, documents)
        elif isinstance(self._store, PairStore) and (margins := self._store.flat.margins) is not None:
            batch.margin_P = torch.from_numpy(margins[documents[0::2]])
        return batch

    def _batch_of(self, store: Documents, documents: list[int], joined: list[int] | None = None) -> Batch:
        if not documents:
            batch = empty_batch(self._options.pad_token_id, self._options.packing)
        elif self._options.packing:
            batch = _packed(store, documents, joined)
        else:
            batch = _padded(store, documents, self._options.pad_token_id)
        return _pin(batch) if torch.cuda.is_available() else batch

    def _joined(self, packs: Ints, by_pack: list[list[int]]) -> list[int] | None:
        """Return how many consecutive documents of these packs form one; None if all are separate."""
        if self._fused is None or not self._fused[packs].any():
            return None
        sizes = [
            [len(pack)] if fused else [1] * len(pack) for fused, pack in zip(self._fused[packs], by_pack, strict=True)
        ]
        return [size for pack in sizes for size in pack]


def _packed(store: Documents, documents: list[int], joined: list[int] | None = None) -> Batch:
    """Return the documents concatenated in one row of T tokens.

    `joined` are the numbers of consecutive documents that become one; no token of a document is predicted from another's.
    """
    lengths = store.lengths[documents].astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids_T = np.concatenate([store.ids(document) for document in documents]).astype(np.int64)
    mask_T = np.concatenate([store.mask(document) for document in documents]).astype(bool)
    mask_T[bounds[:-1]] = False  # the last token of a document must not predict the first of the next
    positions_K = np.flatnonzero(mask_T)
    source_T = np.repeat(store.sources[documents], lengths)
    if joined is not None:
        bounds = bounds[np.cumsum([0, *joined])]
        lengths = np.diff(bounds)
    positions_T = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    return Batch(
        input_ids_BT=torch.from_numpy(ids_T)[None],
        position_ids_BT=torch.from_numpy(positions_T)[None],
        rows_K=torch.from_numpy(positions_K - 1),
        targets_K=torch.from_numpy(ids_T[positions_K]),
        source_K=torch.from_numpy(source_T[positions_K].astype(np.int64)),
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        num_tokens=int(bounds[-1]),
        num_padding=0,
        example_ids=documents,
        document_lengths=lengths.tolist(),
        document_K=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)[positions_K]),
    )


def _padded(store: Documents, documents: list[int], pad_token_id: int) -> Batch:
    """Return one document per row, right-padded to the longest."""
    lengths = store.lengths[documents].astype(np.int64)
    shape = (len(documents), int(lengths.max()))
    ids_BT = np.full(shape, pad_token_id, dtype=np.int64)
    mask_BT = np.zeros(shape, dtype=bool)
    for row, document in enumerate(documents):
        ids_BT[row, : lengths[row]] = store.ids(document)
        mask_BT[row, : lengths[row]] = store.mask(document)
    mask_BT[:, 0] = False
    positions_K = np.flatnonzero(mask_BT)
    return Batch(
        input_ids_BT=torch.from_numpy(ids_BT),
        position_ids_BT=torch.from_numpy(np.tile(np.arange(shape[1]), (shape[0], 1))),
        rows_K=torch.from_numpy(positions_K - 1),
        targets_K=torch.from_numpy(ids_BT.reshape(-1)[positions_K]),
        source_K=torch.from_numpy(store.sources[documents][positions_K // shape[1]].astype(np.int64)),
        max_seqlen=shape[1],
        num_tokens=int(lengths.sum()),
        num_padding=int(shape[0] * shape[1] - lengths.sum()),
        example_ids=documents,
        document_lengths=lengths.tolist(),
        document_K=torch.from_numpy(positions_K // shape[1]),
    )


def empty_batch(pad_token_id: int, packing: bool) -> Batch:
    """Return a one-token batch without loss, so that this rank takes part in the collectives of the step."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(
        input_ids_BT=torch.full((1, 1), pad_token_id, dtype=torch.int64),
        position_ids_BT=torch.zeros((1, 1), dtype=torch.int64),
        rows_K=nothing,
        targets_K=nothing.clone(),
        source_K=nothing.clone(),
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32) if packing else None,
        max_seqlen=1,
        num_tokens=0,
        num_padding=1,
        example_ids=[],
        document_lengths=[1],
        document_K=nothing.clone(),
    )


def _pin(batch: Batch) -> Batch:
    values = dict(vars(batch))
    return Batch(
        **{name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    )
