"""What the package itself has, read once."""

from __future__ import annotations

import pytest

from arctic_hydra.cli.composition.search_path import hydra_with
from arctic_hydra.cli.help.inventory import Inventory


@pytest.fixture(scope="package")
def known() -> Inventory:
    """Every option is read, as its loader ends with the fixture."""
    with hydra_with() as loader:
        inventory = Inventory(loader)
        for group, names in inventory.groups.items():
            for name in names:
                inventory.option(group, name)
        assert inventory.run_keys
        return inventory
