"""What a path that is no run, checkpoint or export was meant to be."""

from __future__ import annotations

import os

import pytest

from arctic_hydra import load_run
from arctic_hydra.errors import ConfigError
from arctic_hydra.files.start_paths import start_problem
from arctic_hydra.launch.extended_run import with_overrides_of_extended_run
from arctic_hydra.model.hf import check_model_directory


def test_a_folder_of_runs_is_answered_with_its_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("old", "new")):
        (tmp_path / "outputs" / "a" / name / "export").mkdir(parents=True)
        file = tmp_path / "outputs" / "a" / name / "run.json"
        file.touch()
        os.utime(file, (number, number))
    assert start_problem("outputs/a") == (
        "got outputs/a, a folder of runs; expected one of them; did you mean outputs/a/new?"
    )
    assert start_problem("outputs/a/new") is None
    assert str(start_problem(str(tmp_path / "outputs/a/n*"))).endswith(
        "; shells expand no pattern after `=`; did you mean outputs/a/new?"
    )
    for call in (lambda: load_run("outputs/a"), lambda: with_overrides_of_extended_run(["extend=outputs/a"])):
        with pytest.raises(ConfigError, match=r"holds no record.json; .*; did you mean outputs/a/new\?"):
            call()
    (tmp_path / "outputs" / "a" / "new" / "export" / "config.json").touch()
    for folder in ("outputs/a", "outputs/a/new"):
        [problem] = check_model_directory(folder)
        assert problem.endswith("; did you mean the export in outputs/a/new/export?")
    (tmp_path / "adapter_config.json").touch()
    [problem] = check_model_directory(str(tmp_path))
    assert "it holds an adapter: merge it first" in problem
