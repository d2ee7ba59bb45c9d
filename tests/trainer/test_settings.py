"""The checks among the settings of a trainer."""

from __future__ import annotations

import pytest

from arctic_hydra.trainer.sft import SFTTrainer


def test_the_two_names_of_the_evaluation_interval_are_one_setting() -> None:
    assert SFTTrainer(eval_interval=7).eval_frequency == 7
    assert SFTTrainer(eval_interval=7, eval_frequency=7).eval_frequency == 7
    with pytest.raises(ValueError, match="eval_interval: got 7, but it is an alias of eval_frequency=5"):
        SFTTrainer(eval_interval=7, eval_frequency=5)


def test_a_run_of_no_length_is_refused() -> None:
    assert SFTTrainer(epochs=0, train_iters=5).train_iters == 5
    with pytest.raises(ValueError, match="epochs: got 0, but train_iters is also 0"):
        SFTTrainer(epochs=0)


def test_numbers_are_read_as_people_write_them() -> None:
    trainer = SFTTrainer(train_iters="2Ki", max_minutes="1.5", epochs=0)
    assert (trainer.train_iters, trainer.max_minutes) == (2048, 1.5)
