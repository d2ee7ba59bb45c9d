"""Loaders of tokenized pairs on disk, as a run has them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from arctic_hydra.data.base import BatchGeometry
from arctic_hydra.data.cache.token_store import JoinedStore, PairStore, TokenStore, write_store
from arctic_hydra.data.documents import Chunk
from arctic_hydra.data.load.loader import LoaderOptions, PackedLoader
from tests.trainer.loop import Document

Pair = tuple[Document, Document]


def stored(folder: Path, documents: list[Document]) -> TokenStore:
    """Return the documents from files, written to `folder` unless they are there."""
    key = hashlib.sha256(repr(documents).encode()).hexdigest()[:32]
    path = folder / key
    if not path.exists():
        path.mkdir(mode=0o700, parents=True)
        ids = np.concatenate([np.array(ids, np.int32) for ids, _ in documents])
        mask = np.concatenate([np.array(mask, np.uint8) for _, mask in documents])
        lengths = np.array([len(ids) for ids, _ in documents])
        write_store(path, [Chunk(ids, mask, lengths, np.arange(len(documents)))], dict)
    return TokenStore(path, key)


def loader_of(folder: Path, sources: dict[str, list[Pair]], trainer: Any, **options: Any) -> PackedLoader:
    """Return the training loader of sources of pairs, shuffled, in packs of 64 tokens."""
    flat = {name: stored(folder, [side for pair in pairs for side in pair]) for name, pairs in sources.items()}
    store = PairStore(JoinedStore(flat))
    geometry = BatchGeometry(trainer.micro_batch_size, trainer.gradient_accumulation_steps, trainer.world, seed=3)
    settings = {"packing": True, "pad_token_id": 0, "pack_tokens": 64, "shuffle": True, "prefetch_steps": 0, **options}
    return PackedLoader(store, np.arange(len(store)), list(sources), geometry, LoaderOptions(**settings))
