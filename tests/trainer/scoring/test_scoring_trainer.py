"""What the trainers with a frozen model have in common: where its scores are stored."""

from __future__ import annotations

import pytest

from arctic_hydra.trainer.distillation.distill import DistillTrainer
from arctic_hydra.trainer.preference.dpo import DPOTrainer
from arctic_hydra.trainer.preference.kto import KTOTrainer


@pytest.mark.parametrize("trainer", [DPOTrainer, KTOTrainer, DistillTrainer])
def test_the_folder_of_scores_is_checked_and_does_not_change_the_id(trainer, tmp_path):
    (tmp_path / "file").touch()
    made = trainer(teacher_path="x/y") if trainer is DistillTrainer else trainer()
    assert made.can_store_scores and "scores_dir" in made.score_settings and "scores_dir" in made.excluded_from_id
    assert {"head_loss", "head_chunk_rows"} < made.excluded_from_id
    made.scores_dir = str(tmp_path / "file" / "scores")
    assert any(problem.startswith("scores_dir: ") for problem in made.check_environment())
