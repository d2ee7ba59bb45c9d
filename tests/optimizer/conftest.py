"""What the tests of several optimizers share."""

from __future__ import annotations

import pytest

from arctic_hydra.optimizer.adamw import AdamWFactory
from tests.optimizer.runs import ADAM, trained
from tests.ranks import run_ranks


@pytest.fixture(scope="session")
def adamw(tmp_path_factory):
    """Losses and final weights of torch's AdamW on one rank."""
    return run_ranks(1, trained, tmp_path_factory.mktemp("adamw"), AdamWFactory(**ADAM), 0)[0]
