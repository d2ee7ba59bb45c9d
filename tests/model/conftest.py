"""The models of the example extension package, registered in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy

import pytest
from hydra.core.config_store import ConfigStore

from arctic_hydra import component
from arctic_hydra.model import registry
from tests.command import ROOT


@pytest.fixture(scope="module")
def lab_models() -> Iterator[None]:
    """Import the models of my_lab, which registers `decoder` and `gru`; afterwards nothing of the package is registered."""
    folder = str(ROOT / "tests" / "examples" / "my_lab")
    sys.path.insert(0, folder)
    registries = (registry._SPECS, component._REGISTRY, component.BY_TARGET)
    before = [dict(known) for known in registries]
    store = ConfigStore.instance()
    stored, store.repo = store.repo, deepcopy(store.repo)
    import my_lab.models

    yield
    assert my_lab.models.__file__.startswith(folder)
    sys.path.remove(folder)
    store.repo = stored
    for known, entries in zip(registries, before, strict=True):
        known.clear()
        known.update(entries)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]
