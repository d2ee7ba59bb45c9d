"""The models of the example extension package, registered in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from arctic_hydra.model import model_spec
from tests.command import ROOT


@pytest.fixture(scope="module")
def lab_models() -> Iterator[None]:
    """Import the models of my_lab, which registers `decoder` and `gru`."""
    folder = str(ROOT / "tests" / "examples" / "my_lab")
    sys.path.insert(0, folder)
    before = dict(model_spec._SPECS)
    import my_lab.models

    yield
    assert my_lab.models.__file__.startswith(folder)
    sys.path.remove(folder)
    model_spec._SPECS.clear()
    model_spec._SPECS.update(before)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]
