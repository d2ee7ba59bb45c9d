"""DeepSpeed's settings and checkpoint engines of a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_hydra.errors import ConfigError
from arctic_hydra.migrate.experiment import Experiment
from arctic_hydra.migrate.recipe_engine import convert_checkpoints, convert_deepspeed


@pytest.mark.parametrize(
    ("given", "option", "values"),
    [
        ({}, "zero2", {}),
        ({"zero_optimization": {}}, "zero0", {}),
        ({"train_batch_size": 8, "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}, "zero1", {}),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin_memory": True}}},
            "zero3",
            {"deepspeed.offload_parameters": True},
        ),
        (
            {
                "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}},
                "steps_per_print": 9,
            },
            "zero3",
            {
                "deepspeed.config": {
                    "steps_per_print": 9,
                    "zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "/x"}},
                }
            },
        ),
    ],
)
def test_a_stage_becomes_an_option(given: dict[str, Any], option: str, values: dict[str, Any]) -> None:
    made = Experiment("mine", "x")
    convert_deepspeed(made, given)
    assert (made.options, made.values, made.lost) == ({"deepspeed": option}, values, [])


def test_a_setting_that_deepspeed_does_not_have_is_named() -> None:
    made = Experiment("mine", "x")
    convert_deepspeed(made, {"no_such_key": 1})
    [line] = made.lost
    assert line.startswith("deepspeed: no_such_key: DeepSpeed has no such key")


@pytest.mark.parametrize("given", [3, {"zero_optimization": {"stage": 7}}])
def test_what_is_no_deepspeed_config_is_an_error(given: Any) -> None:
    with pytest.raises(ConfigError, match="deepspeed"):
        convert_deepspeed(Experiment("mine", "x"), given)


def test_an_engine_of_its_own_code_or_a_second_one_is_named() -> None:
    made = Experiment("mine", "x")
    entries = [{"type": "mine"}, {"type": "huggingface"}, {"type": "huggingface"}, {"output_dir": "a", "keep": 3}]
    convert_checkpoints(made, entries)
    assert made.options == {"checkpoint": ["hf", "deepspeed"]}
    assert [line.partition(";")[0] for line in made.lost] == [
        "checkpoint: mine is a custom engine",
        "checkpoint: huggingface appears twice",
        "checkpoint.keep: ArcticTraining has no such field",
    ]
    with pytest.raises(ConfigError, match="checkpoint: got 'a', expected engines"):
        convert_checkpoints(made, ["a"])
