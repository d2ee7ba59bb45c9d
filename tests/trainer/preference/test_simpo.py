"""SimPO: mean log-probabilities, and a margin."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.trainer.preference.simpo import SimPOTrainer
from tests.ranks import run_ranks
from tests.trainer.preference.test_orpo import first_step


def test_the_loss_is_that_of_the_paper(tmp_path):
    row, scores = run_ranks(1, first_step, tmp_path, SimPOTrainer, {"gamma": 0.7})[0]
    means = torch.tensor([[float(side.mean()) for side in sides] for sides in scores], dtype=torch.float64)
    expected = -float(torch.nn.functional.logsigmoid(2.0 * (means[:, 0] - means[:, 1]) - 0.7).mean())
    assert row["loss"] == pytest.approx(expected, rel=1e-6) and "nll_loss" not in row
    assert row["rewards/margins"] == pytest.approx(2.0 * float((means[:, 0] - means[:, 1]).mean()), rel=1e-5)
