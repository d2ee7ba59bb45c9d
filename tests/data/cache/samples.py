"""Helpers of the cache tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from arctic_hydra.data.documents import Chunk
from arctic_hydra.distributed import World
from tests.data.samples import (
    factory,
)


def key(path: Path, tokenizer: Any, **fields: Any) -> str:
    return factory(path, **fields).process("train", tokenizer, World()).key


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "prepared").iterdir() if path.is_dir())


def chunks() -> list[Chunk]:
    return [Chunk(np.arange(5, dtype=np.int32), np.ones(5, np.uint8), np.array([2, 3], np.int32), np.array([0, 1]))]
