"""The checks among the settings of a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.trainer.sft import SFTTrainer
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer


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


def test_the_reasons_to_stop_early() -> None:
    trainer = SFTTrainer(exit_iteration=10, exit_iteration_this_run="2")
    assert [trainer.exit_reason(step, 1) for step in (9, 10)] == ["", "reached trainer.exit_iteration=10"]
    assert trainer.exit_reason(9, 2) == "did trainer.exit_iteration_this_run=2 steps"
    assert SFTTrainer().exit_reason(10**6, 10**6) == ""


def test_which_evaluations_are_printed() -> None:
    def printed(**fields: int) -> list[int]:
        trainer = SFTTrainer(**fields)
        return [step for step in (0, 5, 10, 15, 20, 22) if trainer.prints_evaluation(step)]

    assert printed(eval_frequency=5) == [0, 5, 10, 15, 20, 22]
    assert printed(eval_frequency=5, eval_log_iter_interval=2) == [0, 10, 20, 22], "and the last one"
    assert printed(eval_frequency=5, eval_log_iter_interval=0) == printed(eval_log_iter_interval=0) == []
    with pytest.raises(ValueError, match="eval_log_iter_interval: got 2, which has no effect with eval_frequency=0"):
        SFTTrainer(eval_log_iter_interval=2)


def test_experts_are_not_divided_among_ranks() -> None:
    with pytest.raises(ValueError, match="expert_parallel_size: got 8, but experts cannot .* pass deepspeed=zero3"):
        SFTTrainer(expert_parallel_size=8)


DATA = documents([12] * 5, [4] * 5)


def _trained(folder: Path, settings: list[dict[str, Any]]) -> list[tuple[int, list[list[int]], list[float]]]:
    """Return for each trainer its horizon, the tokens of each step, and the losses."""
    found = []
    for fields in settings:
        trainer = make_trainer(DATA, folder, micro_batch_size=2, **fields)
        rows: list[dict[str, Any]] = []
        tokens: list[list[int]] = []
        trainer._record = rows.append  # type: ignore[method-assign]
        step = trainer.step

        def noted(window: Any, counts: Any, step: Any = step, tokens: Any = tokens) -> None:
            tokens.append([token for batch in window.micro_batches for token in batch.input_ids_BT.flatten().tolist()])
            step(window, counts)

        trainer.step = noted  # type: ignore[method-assign]
        trainer.train()
        found.append((trainer.training_horizon, tokens, [row["loss"] for row in rows]))
    return found


def test_min_iterations_repeats_the_data_and_the_first_batch_can_be_overfitted(tmp_path: Path) -> None:
    settings = [
        {"min_iterations": 8}, {"min_iterations": 8, "train_iters": 7}, {"min_iterations": 2},
        {"overfit_first_batch": True, "min_iterations": 8},
    ]  # fmt: skip
    [(repeated, limited, enough, overfitted)] = run_ranks(1, _trained, tmp_path, settings)
    assert [found[0] for found in (repeated, limited, enough, overfitted)] == [8, 7, 3, 8], "3 steps per epoch"
    steps = repeated[1]
    assert len(steps) == 8 and steps[:3] == steps[3:6] and steps[0] != steps[1]
    assert overfitted[1] == [steps[0]] * 8
    assert overfitted[2] == sorted(overfitted[2], reverse=True) and overfitted[2][-1] < overfitted[2][0] - 0.5
