"""The tokenizer of a directory or the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arctic_hydra.assets import ASSETS
from arctic_hydra.errors import ConfigError
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
from arctic_hydra.tokenizer.hf import HFTokenizerFactory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "tokenizer", tmp_path / "tokenizer"))


def test_hf_from_a_directory(directory: Path) -> None:
    factory = HFTokenizerFactory(name_or_path=str(directory))
    assert not list(factory.check_environment())
    assert factory.create_tokenizer().get_vocab() == BundledTokenizerFactory().create_tokenizer().get_vocab()


def test_a_missing_name_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"tokenizer\.name_or_path: not set, .*pass tokenizer\.name_or_path=.*tokenizer=bundled"
    ):
        HFTokenizerFactory().create_tokenizer()
