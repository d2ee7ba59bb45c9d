"""The model that the tests of converters and adapters change."""

from __future__ import annotations

import pytest

from tests.converter import lab


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A saved Llama with the bundled tokenizer."""
    lab.warm()
    return lab.save_model(tmp_path_factory.mktemp("model") / "llama")
