"""Flags and overrides of the command line."""

from __future__ import annotations

import pytest

from arctic_hydra.cli import command_line
from arctic_hydra.cli.composition.compose import compose_config
from arctic_hydra.errors import ConfigError


def test_flags_and_overrides():
    options = command_line.parse(["seed=3", "--config-dir", ".", "trainer.epochs=2"])
    assert (options.config_name, options.config_dir, options.overrides) == (
        "config",
        ".",
        ["seed=3", "trainer.epochs=2"],
    )
    for words in (["--config-name", " "], ["--config-dir", "absent"], ["--config-path", "x"], ["--modle=hf"]):
        with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
            command_line.parse(words)


def test_a_launcher_runs_a_training_even_without_m():
    slurm = ["hydra/launcher=slurm"]
    assert command_line.is_launched(compose_config(slurm, "config"), slurm)
    evaluation = compose_config([*slurm, "task=evaluate"], "config")
    assert not command_line.is_launched(evaluation, []), "as when an experiment chose the launcher"
    assert not command_line.is_launched(compose_config([], "config"), [])


def test_hydras_own_overrides_have_no_effect_on_one_run():
    command_line.refuse_hydra_overrides(["seed=1", "hydra.searchpath=[file://x]"])
    with pytest.raises(ConfigError, match="hydra.sweep.dir: has no effect on a single run"):
        command_line.refuse_hydra_overrides(["hydra.sweep.dir=x"])
