# ruff: noqa: E501 (tables of command lines and messages)
"""Errors of composition: unknown keys, groups and options, and values of the wrong type."""

from __future__ import annotations

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.cli.compose_errors import translate_error

BAD = [
    (
        "source@data.sources.mine=json data.sources.mine.path=x",
        "source@data.sources.mine: there is no such entry to replace; add it with +source@data.sources.mine=<option>",
    ),
    ("optimizer.lrr=1", "optimizer.lrr: there is no such key; did you mean optimizer.lr?"),
    ("modle=hf", "modle: there is no such key; did you mean model?"),
    ("model=ligr", "model: got 'ligr', expected one of hf, liger, random, spec, tiny; did you mean liger?"),
    ("seed=abc", "seed: Value 'abc' of type 'str' could not be converted to Integer"),
    ("task=trian", "task: Invalid value 'trian', expected one of [train, check, evaluate, export, preview, report]"),
    ("checkpoint.hff.x=2", "checkpoint.hff.x: checkpoint.hff is not among the chosen options (deepspeed, hf)"),
    ("data/sources=[metamth]", "data/sources: got 'metamth', expected one of"),
    ("data.sources=[ultrachat,openorca]", "data.sources: got a list, expected named entries; choose sets with data/sources=[ultrachat,openorca]"),
    ("+foo=1", "foo: there is no such key"),
    ("experiment=sft", "experiment: got 'sft', expected one of sft_ultrachat"),
    ("model=3", "model: got 3, expected one of hf, liger, random, spec, tiny"),
    ("tracking=null", "tracking: got None, expected one of mlflow, none, tensorboard, wandb, or [] where it is a list"),
    ("checkpoint=[deepspeed,hff]", "checkpoint: got 'hff', expected one of deepspeed, hf; did you mean hf?"),
    ("callback=[early_stoping]", "callback: got 'early_stoping', expected one of early_stopping, ema, memory_profiler, profiler, samples; did you mean early_stopping?"),
    ("optimizer.lr=1,2", "optimizer.lr: got '1,2'; pass -m for a sweep over these values, or optimizer.lr=[1,2] for a list"),
    ("tracking.aim.x=1", "tracking.aim.x: tracking.aim is not among the chosen options (mlflow), and there is no such option"),
    ("optimizer=linear", "optimizer: got 'linear', expected one of adamw, cpu_adam, fused_adam, muon"),
    ("optimizer", "optimizer: not a valid override; expected key=value, with quotes around special characters"),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "text"), BAD, ids=[argument for argument, _ in BAD])
def test_bad_overrides_are_refused_in_one_sentence(argument, text, capsys, tmp_path):
    assert main(argument.split(" ")) == 2
    error = capsys.readouterr().err
    assert f"error: {text}" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_circular_chain_of_errors_ends():
    first, second = ValueError("bad value"), KeyError("x")
    first.__cause__, second.__context__ = second, first
    assert "bad value" in str(translate_error(first, ["seed=1"], None))
