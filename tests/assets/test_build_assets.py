"""The bundled files are what their script makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arctic_hydra.assets import ASSETS
from arctic_hydra.assets.build_assets import build, train_tokenizer, write_tokenizer


def test_the_tokenizer_is_made_from_the_bundled_slice(tmp_path: Path) -> None:
    write_tokenizer(train_tokenizer(ASSETS / "chat" / "train_sft.jsonl"), tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in (ASSETS / "tokenizer").iterdir()}


def test_the_slice_is_made_from_the_source(tmp_path: Path, repository: Path) -> None:
    source = Path(os.environ.get("ARCTIC_HYDRA_TEST_DATA", repository.parent / "shared" / "data"))
    if not (source / "chat" / "train_sft.jsonl").is_file():
        pytest.skip(f"the source data is not in {source} (set ARCTIC_HYDRA_TEST_DATA)")
    build(source, tmp_path)
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (ASSETS / path.relative_to(tmp_path)).read_bytes(), path


def test_the_slice_says_where_it_comes_from() -> None:
    assert "MIT License" in (ASSETS / "chat" / "LICENSE").read_text()
    assert "first 957 conversations" in (ASSETS / "chat" / "NOTICE").read_text()
