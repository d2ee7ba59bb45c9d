"""CPO: scores without a reference, and the chosen tokens of the whole step."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.trainer.preference.cpo import CPOTrainer
from tests.ranks import run_ranks
from tests.trainer.preference.test_orpo import first_step


def test_the_loss_is_that_of_the_paper(tmp_path):
    row, scores = run_ranks(1, first_step, tmp_path, CPOTrainer, {"alpha": 0.5})[0]
    sums = torch.tensor([[float(side.sum()) for side in sides] for sides in scores], dtype=torch.float64)
    nll = -float(torch.cat([chosen for chosen, _ in scores]).mean())
    expected = -float(torch.nn.functional.logsigmoid(0.1 * (sums[:, 0] - sums[:, 1])).mean()) + 0.5 * nll
    assert row["loss"] == pytest.approx(expected, rel=1e-6) and row["nll_loss"] == pytest.approx(nll, rel=1e-6)
    assert row["logps/rejected"] == pytest.approx(float(sums[:, 1].mean()), rel=1e-6)
