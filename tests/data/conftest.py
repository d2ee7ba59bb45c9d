"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
from tests.data.samples import chat, write_lines


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return BundledTokenizerFactory().create_tokenizer()


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "arctic_hydra"


@pytest.fixture
def small_chats(tmp_path: Path) -> Path:
    """37 short chats of different lengths."""
    rows = [
        chat(f"Question {index}? " + "Add one. " * (index % 7), f"Answer {index}. " * (1 + index % 5))
        for index in range(37)
    ]
    return write_lines(tmp_path / "small.jsonl", rows)
