"""A command from its words to its exit code."""

from __future__ import annotations

import os

import pytest

from arctic_hydra.cli import command_line
from arctic_hydra.cli.composition.compose import compose_config
from arctic_hydra.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError(["a: one", "b: two"]), 2, "error: a: one\nerror: b: two\n"),
        (DataError("a row"), 1, "error: a row\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_exit_codes(error, code, text, capsys):
    def fail() -> int:
        raise error

    assert command_line.exit_code(fail, []) == code
    assert capsys.readouterr().err == text
    if code < 100:
        told = []
        assert command_line.exit_code(fail, [], told.append) == code and told == [error]


def test_a_command_needs_a_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert command_line.exit_code(lambda: 0, []) == 2
    assert "the working directory no longer exists" in capsys.readouterr().err
    os.chdir(tmp_path)


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
