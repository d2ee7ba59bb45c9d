"""DeepSpeed's fused AdamW against torch's, on real engines."""

from __future__ import annotations

import pytest

from arctic_hydra.optimizer.fused_adam import FusedAdamFactory
from tests.optimizer.runs import ADAM, compare, trained
from tests.ranks import run_ranks


@pytest.mark.extras
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 2), (2, 3)])
def test_equals_torch_on_ranks_and_stages(adamw, tmp_path, ranks, stage):
    for ours in run_ranks(ranks, trained, tmp_path, FusedAdamFactory(**ADAM), stage):
        compare(ours, adamw, 2e-5)
