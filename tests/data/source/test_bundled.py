"""The bundled conversations."""

from __future__ import annotations

import pytest

from arctic_hydra.data.source.bundled import BundledSource
from arctic_hydra.errors import DataError


def test_bundled_splits() -> None:
    assert len(BundledSource().rows("train")) == 957
    assert len(BundledSource(split="test_sft").rows("train")) == 100
    with pytest.raises(DataError, match="the bundled data has no split 'x'; expected train"):
        BundledSource(split="x").rows("train")
