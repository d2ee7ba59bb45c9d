"""Fixtures of the source tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.samples import chat, write_lines


@pytest.fixture
def hub_directory(tmp_path: Path) -> Path:
    """A directory in the layout of a data set on the hub, with three splits."""
    write_lines(tmp_path / "train_sft.jsonl", [chat(f"train {n}", "a") for n in range(4)])
    write_lines(tmp_path / "test_sft.jsonl", [chat("test", "a")])
    write_lines(tmp_path / "train_sft_gen.jsonl", [chat("other split", "a")])
    return tmp_path
