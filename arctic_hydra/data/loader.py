"""From prepared examples and a plan to the micro-batches of each optimizer step.

Window s of an epoch takes packs [s*G, (s+1)*G) of the epoch's order, G being the global batch size. Slot i of a window
goes to micro-batch i // (micro_batch_size * ranks) of rank (i // micro_batch_size) % ranks, so that micro-batch size,
accumulation and ranks only cut the same sequence of global batches in other pieces.

Shapes: B rows, T tokens per row, K supervised positions.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from arctic_hydra.batch import Batch, Window
from arctic_hydra.data.base import BatchGeometry, Example
from arctic_hydra.data.order import balanced, grouped_order, mix
from arctic_hydra.data.packing import Ints, Plan, epoch_order, plan_packs, plan_singles
from arctic_hydra.data.store import Array, JoinedStore, PairStore

PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class LoaderOptions:
    """How examples become batches."""

    max_length: int
    packing: bool
    shuffle: bool
    pad_token_id: int
    prefetch_steps: int
    group_by_length: bool = False
    weights: tuple[float, ...] = ()
    """Share of each source in an epoch; empty: every example once."""
    mix_by_tokens: bool = False


class PackedLoader:
    """Windows over prepared examples, addressable by (epoch, step); fulfils `data.base.Loader`."""

    def __init__(
        self,
        store: JoinedStore | PairStore,
        examples: Ints,
        source_names: list[str],
        geometry: BatchGeometry,
        options: LoaderOptions,
    ) -> None:
        """Serve the given examples of `store`: packed, or one a row where packing is off."""
        self.source_names = source_names
        self._store, self._examples = store, examples
        self._geometry, self._options = geometry, options
        self._mixed: tuple[int, Plan] | None = None
        self.plan = self._plan(0)
        self.fingerprint = self._hash()

    def _hash(self) -> str:
        options = self._options
        parts = {
            "examples": self._store.key,
            "chosen": hashlib.sha256(self._examples.astype("<i8").tobytes()).hexdigest(),
            "plan": hashlib.sha256(
                self.plan.examples.astype("<i8").tobytes() + self.plan.bounds.astype("<i8").tobytes()
            ).hexdigest(),
            "shuffle": self._geometry.seed if options.shuffle else None,
            "order": [options.group_by_length, options.weights, options.mix_by_tokens],
            "global_batch_size": self._geometry.global_batch_size,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def steps(self, epoch: int) -> int:
        """Optimizer steps in `epoch`, the ragged last one included."""
        return -(-len(self._plan(epoch)) // self._geometry.global_batch_size)

    def _plan(self, epoch: int) -> Plan:
        """Return the packs of an epoch: one plan for all, or a new one for each where sources are mixed by weight."""
        options = self._options
        number = epoch if options.weights else 0
        if self._mixed is not None and self._mixed[0] == number:
            return self._mixed[1]
        lengths = self._store.lengths[self._examples]
        make = plan_packs if options.packing else plan_singles
        if options.weights:
            sizes = lengths if options.mix_by_tokens else np.ones(len(lengths), dtype=np.int64)
            sources = self._store.sources[self._examples]
            chosen = mix(sources, sizes, options.weights, self._geometry.seed, epoch)
            plan = make(lengths[chosen], options.max_length)
            plan = replace(plan, examples=chosen[plan.examples])
        else:
            plan = make(lengths, options.max_length)
        self._mixed = (number, plan)
        return plan

    def _order(self, plan: Plan, epoch: int) -> Ints:
        geometry = self._geometry
        if not self._options.shuffle:
            return np.arange(len(plan))
        if self._options.group_by_length:
            lengths = self._store.lengths[self._examples][plan.examples]
            return grouped_order(lengths, geometry.global_batch_size, geometry.seed, epoch)
        return epoch_order(len(plan), geometry.seed, epoch)

    def windows(self, epoch: int, start: int = 0) -> Iterator[Window]:
        """Yield this rank's windows of `epoch` from step `start` on, made ahead by a thread of this process."""
        plan = self._plan(epoch)
        order = self._order(plan, epoch)
        squares = self._store.lengths[self._examples][plan.examples].astype(np.float64) ** 2
        costs = np.add.reduceat(squares, plan.bounds[:-1]) if len(plan) else squares
        steps = range(start, self.steps(epoch))
        if not self._options.prefetch_steps:
            for step in steps:
                yield self._window(plan, order, costs, step)
            return
        waiting: deque[Future[Window]] = deque()
        pool = ThreadPoolExecutor(1, thread_name_prefix="arctic_hydra-loader")
        try:
            for step in steps:
                waiting.append(pool.submit(self._window, plan, order, costs, step))
                if len(waiting) > self._options.prefetch_steps:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the trainer stops in the middle of an epoch
            pool.shutdown(wait=True, cancel_futures=True)

    def summary(self) -> dict[str, Any]:
        """Return figures for the record: rows, tokens, supervised share, lengths, packs and their fill, per source."""
        lengths = self._store.lengths[self._examples]
        supervised = self._store.supervised[self._examples]
        sources = self._store.sources[self._examples]
        per_source: dict[str, Any] = {}
        for index, name in enumerate(self.source_names):
            mine = sources == index
            figures = _figures(lengths[mine], supervised[mine])
            per_source[name] = {"prepared": self._store.report[name], **figures}
        return {
            **_figures(lengths, supervised),
            "packing": self._options.packing,
            "packs": len(self.plan),
            "fill": round(self.plan.fill, 6),
            "max_length": self._options.max_length,
            "max_token_id": max((report["max_token_id"] for report in self._store.report.values()), default=-1),
            "steps_per_epoch": self.steps(0),
            "sources": per_source,
            "fingerprint": self.fingerprint,
        }

    def preview(self, count: int) -> list[Example]:
        """Return up to `count` examples of each source, spread evenly over it."""
        found: list[Example] = []
        for index, name in enumerate(self.source_names):
            mine = self._examples[self._store.sources[self._examples] == index]
            for place in np.unique(np.linspace(0, len(mine) - 1, min(count, len(mine))).astype(np.int64)):
                flat = self._store.flat
                for document in self._store.documents(int(mine[place])):
                    ids, mask = flat.ids(document).tolist(), flat.mask(document).tolist()
                    found.append(Example(name, int(flat.rows[document]), ids, mask))
        return found

    def _window(self, plan: Plan, order: Ints, costs: Array, step: int) -> Window:
        geometry = self._geometry
        packs = order[step * geometry.global_batch_size : (step + 1) * geometry.global_batch_size]
        if geometry.world.size > 1:
            packs = balanced(packs, costs, geometry.micro_batch_size, geometry.world.size)
        per_micro = geometry.micro_batch_size * geometry.world.size
        batches = []
        for first in range(0, len(packs), per_micro):
            mine = first + geometry.world.rank * geometry.micro_batch_size
            stop = min(mine + geometry.micro_batch_size, first + per_micro)
            batches.append(self._batch(plan, packs[mine:stop]))
        return Window(batches, step_in_epoch=step)

    def _batch(self, plan: Plan, packs: Ints) -> Batch:
        chosen = [self._examples[example] for pack in packs for example in plan.pack(int(pack))]
        documents = [document for example in chosen for document in self._store.documents(int(example))]
        if not documents:
            batch = _dummy(self._options.pad_token_id, self._options.packing)
        elif self._options.packing:
            batch = _packed(self._store.flat, documents)
        else:
            batch = _padded(self._store.flat, documents, self._options.pad_token_id)
        return _pin(batch) if torch.cuda.is_available() else batch


def _packed(store: JoinedStore, documents: list[int]) -> Batch:
    """Return the documents one after another in one row of T tokens."""
    lengths = store.lengths[documents].astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids_T = np.concatenate([store.ids(document) for document in documents]).astype(np.int64)
    mask_T = np.concatenate([store.mask(document) for document in documents]).astype(bool)
    positions_T = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    mask_T[bounds[:-1]] = False  # the last token of the document before must not predict the first of this one
    places_K = np.flatnonzero(mask_T)
    source_T = np.repeat(store.sources[documents], lengths)
    return Batch(
        input_ids_BT=torch.from_numpy(ids_T)[None],
        position_ids_BT=torch.from_numpy(positions_T)[None],
        rows_K=torch.from_numpy(places_K - 1),
        targets_K=torch.from_numpy(ids_T[places_K]),
        source_K=torch.from_numpy(source_T[places_K].astype(np.int64)),
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        num_tokens=int(bounds[-1]),
        num_padding=0,
        example_ids=documents,
        document_lengths=lengths.tolist(),
        document_K=torch.from_numpy(np.repeat(np.arange(len(documents)), lengths)[places_K]),
    )


def _padded(store: JoinedStore, documents: list[int], pad_token_id: int) -> Batch:
    """Return one document a row, right-padded to the longest."""
    lengths = store.lengths[documents].astype(np.int64)
    shape = (len(documents), int(lengths.max()))
    ids_BT = np.full(shape, pad_token_id, dtype=np.int64)
    mask_BT = np.zeros(shape, dtype=bool)
    for row, document in enumerate(documents):
        ids_BT[row, : lengths[row]] = store.ids(document)
        mask_BT[row, : lengths[row]] = store.mask(document)
    mask_BT[:, 0] = False
    places_K = np.flatnonzero(mask_BT)
    return Batch(
        input_ids_BT=torch.from_numpy(ids_BT),
        position_ids_BT=torch.from_numpy(np.tile(np.arange(shape[1]), (shape[0], 1))),
        rows_K=torch.from_numpy(places_K - 1),
        targets_K=torch.from_numpy(ids_BT.reshape(-1)[places_K]),
        source_K=torch.from_numpy(store.sources[documents][places_K // shape[1]].astype(np.int64)),
        max_seqlen=shape[1],
        num_tokens=int(lengths.sum()),
        num_padding=int(shape[0] * shape[1] - lengths.sum()),
        example_ids=documents,
        document_lengths=lengths.tolist(),
        document_K=torch.from_numpy(places_K // shape[1]),
    )


def _dummy(pad_token_id: int, packing: bool) -> Batch:
    """Return one token that nothing is learned from: each rank has to take part in every forward of the others."""
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


def _figures(lengths: Array, supervised: Array) -> dict[str, Any]:
    tokens, trained = int(lengths.sum()), int(supervised.sum())
    shares = np.percentile(lengths, PERCENTILES, method="higher").tolist() if len(lengths) else [0] * len(PERCENTILES)
    return {
        "examples": len(lengths),
        "tokens": tokens,
        "supervised_tokens": trained,
        "supervised_share": round(trained / tokens, 6) if tokens else 0.0,
        "length_tokens": {f"p{percent}": int(value) for percent, value in zip(PERCENTILES, shares, strict=True)},
    }
