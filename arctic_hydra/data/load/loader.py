"""The loader of data that is tokenized ahead of training: one packing plan per epoch, addressable by (epoch, step)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arctic_hydra.data.arrays import Array, Ints
from arctic_hydra.data.base import BatchGeometry, Example
from arctic_hydra.data.batch import StepBatch
from arctic_hydra.data.cache.token_store import JoinedStore, PairStore
from arctic_hydra.data.documents import Examples
from arctic_hydra.data.load.batches import BatchOptions, StepBatches
from arctic_hydra.data.load.full_packs import Pieces, cut_to_packs, repeated, without_last
from arctic_hydra.data.load.mismatched import LabelledStore, Mismatched
from arctic_hydra.data.load.order import drawn, epoch_order, grouped_order, mix
from arctic_hydra.data.load.packing import Plan, plan_packs, plan_singles
from arctic_hydra.data.load.prefetch import prefetch
from arctic_hydra.data.load.statistics import length_statistics
from arctic_hydra.errors import DataError


@dataclass(frozen=True)
class LoaderOptions(BatchOptions):
    """How examples become batches, and in which order."""

    pack_tokens: int
    shuffle: bool
    prefetch_steps: int
    group_by_length: bool = False
    weights: tuple[float, ...] = ()
    """Share of each source in an epoch; empty: every example is used once."""
    mix_by_tokens: bool = False
    always_max_length: bool = False
    drop_last: bool = False
    repeat_to_pack_max_length: bool = False
    fuse_positions_prob: float = 0.0
    max_length: int = 0
    """Limit of the tokens of one document; 0 if it is that of a pack."""


class PackedLoader:
    """Batches of tokenized examples, addressable by (epoch, step); implements `data.base.Loader`."""

    def __init__(
        self,
        store: JoinedStore | PairStore | LabelledStore,
        examples: Ints,
        source_names: list[str],
        geometry: BatchGeometry,
        options: LoaderOptions,
    ) -> None:
        """Serve the given examples of `store`: packed, or one per row with packing off."""
        self.source_names = source_names
        self._store, self._examples = store, examples
        self._geometry, self._options = geometry, options
        self._planned: tuple[int, Examples, Plan] | None = None
        self.plan = self._plan(0)[1]
        self.fingerprint = self._hash()

    @property
    def documents(self) -> JoinedStore:
        """The tokenized documents of all sources, which `Batch.example_ids` indexes; also those that are not served."""
        return self._store if isinstance(self._store, JoinedStore) else self._store.flat

    @property
    def mismatched(self) -> Mismatched | None:
        """The mismatched pairs of labelled data, which `Batch.mismatched` indexes."""
        return self._store.mismatched if isinstance(self._store, LabelledStore) else None

    @property
    def options(self) -> LoaderOptions:
        """How documents become batches."""
        return self._options

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
        filling = [options.always_max_length, options.drop_last, options.repeat_to_pack_max_length]
        if any(filling) or options.fuse_positions_prob:  # runs from before these options keep their fingerprint
            parts["filling"] = [*filling, options.fuse_positions_prob]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def steps(self, epoch: int) -> int:
        """Optimizer steps in `epoch`, including the partial last one."""
        # Without weights, the number of packs depends on the lengths alone and is the same in every epoch.
        packs = len(self._plan(epoch)[1] if self._options.weights else self.plan)
        return -(-packs // self._geometry.global_batch_size)

    def _plan(self, epoch: int) -> tuple[Examples, Plan]:
        """Return the packs of an epoch and the examples that they hold; with a random order, each epoch has other packs."""
        if self._planned is not None and self._planned[0] == epoch:
            return self._planned[1:]
        options, geometry, chosen = self._options, self._geometry, self._examples
        if options.weights:
            lengths, sources = self._store.lengths[chosen], self._store.sources[chosen]
            if absent := set(range(len(self.source_names))) - set(np.unique(sources).tolist()):
                raise DataError(
                    f"data.sources.{self.source_names[min(absent)]}.weight: the source has no examples to train on, so it cannot have "
                    "a share of each epoch; give it more rows, or remove it"
                )
            sizes = lengths if options.mix_by_tokens else np.ones(len(lengths), dtype=np.int64)
            chosen = chosen[mix(sources, sizes, options.weights, geometry.seed, epoch)]
        if options.repeat_to_pack_max_length:
            chosen = chosen[repeated(self._store.lengths[chosen], options.pack_tokens)]
        if options.packing and options.shuffle:
            # Packing depends on the lengths alone; the shuffle decides which examples of equal length share a pack.
            chosen = chosen[epoch_order(len(chosen), geometry.seed + 1, epoch)]
        examples: Examples = self._store
        if options.always_max_length:
            examples, plan = cut_to_packs(self._store, chosen, options.pack_tokens)
        else:
            make = plan_packs if options.packing else plan_singles
            plan = make(self._store.lengths[chosen], options.pack_tokens)
            plan = replace(plan, examples=chosen[plan.examples])
        if options.drop_last:
            plan = without_last(plan, examples.lengths)
            if not len(plan):
                raise DataError(
                    "data.drop_last: got true, but all examples together do not fill one pack, so none is left; pass "
                    "data.drop_last=false, or lower data.max_length"
                )
        self._planned = (epoch, examples, plan)
        return examples, plan

    def _order(self, plan: Plan, epoch: int) -> Ints:
        geometry = self._geometry
        if not self._options.shuffle:
            return np.arange(len(plan))
        if self._options.group_by_length:
            lengths = self._store.lengths[plan.examples]
            return grouped_order(lengths, geometry.global_batch_size, geometry.seed, epoch)
        return epoch_order(len(plan), geometry.seed, epoch)

    def windows(self, epoch: int, start: int = 0) -> Iterator[StepBatch]:
        """Yield this rank's batches of each step of `epoch` from step `start` on, prefetched in a background thread."""
        examples, plan = self._plan(epoch)
        share, seed = self._options.fuse_positions_prob, self._geometry.seed
        fused = drawn(len(plan), share, seed + 2, epoch) if share else None
        batches = StepBatches(examples, plan, self._order(plan, epoch), self._geometry, self._options, fused)
        steps = (_with_example_ids(batches.step_batch(step), examples) for step in range(start, len(batches)))
        return prefetch(steps, self._options.prefetch_steps)

    def summary(self) -> dict[str, Any]:
        """Return statistics for the run's record: rows, tokens, supervised share, lengths, packs and fill, also per source."""
        figures = [
            column[self._examples] for column in (self._store.longest, self._store.tokens, self._store.supervised)
        ]
        sources = self._store.sources[self._examples]
        per_source: dict[str, Any] = {}
        for index, name in enumerate(self.source_names):
            mine = sources == index
            statistics = _statistics(*(column[mine] for column in figures))
            per_source[name] = {"prepared": self._store.report[name], **statistics}
        return {
            **_statistics(*figures),
            "packing": self._options.packing,
            "packs": len(self.plan),
            "fill": round(self.plan.fill, 6),
            "pack_tokens": self._options.pack_tokens,
            "max_length": self._options.max_length or self._options.pack_tokens,
            "max_token_id": max((report["max_token_id"] for report in self._store.report.values()), default=-1),
            "steps_per_epoch": self.steps(0),
            "sources": per_source,
            "fingerprint": self.fingerprint,
        }

    def preview(self, count: int) -> list[Example]:
        """Return up to `count` examples of each source, evenly spaced."""
        found: list[Example] = []
        for index, name in enumerate(self.source_names):
            mine = self._examples[self._store.sources[self._examples] == index]
            for position in np.unique(np.linspace(0, len(mine) - 1, min(count, len(mine))).astype(np.int64)):
                example = int(mine[position])
                for side, documents, document in self._store.sides(example):
                    ids, mask = documents.ids(document).tolist(), documents.mask(document).tolist()
                    found.append(Example(name, int(self._store.rows[example]), ids, mask, side))
        return found


def _with_example_ids(window: StepBatch, examples: Examples) -> StepBatch:
    """Set `example_ids` to those of the whole examples if the batches hold pieces of them."""
    if isinstance(examples, Pieces):
        for batch in window.micro_batches:
            batch.example_ids = examples.examples[batch.example_ids].tolist() if batch.example_ids else []
    return window


def _statistics(longest: Array, tokens: Array, supervised: Array) -> dict[str, Any]:
    return length_statistics(np.bincount(longest, minlength=1), int(supervised.sum()), int(tokens.sum()))
