"""The run that a folder of runs stands for, and how a run differs from the last one."""

from __future__ import annotations

import os

import pytest

from arctic_hydra import other_runs
from arctic_hydra.api.loaded_run import load_run
from arctic_hydra.errors import ConfigError
from arctic_hydra.launch.extended_run import with_overrides_of_extended_run
from arctic_hydra.model.hf import check_model_directory
from arctic_hydra.run_directory import RunDirectory


def test_a_folder_of_runs_is_answered_with_its_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("old", "new")):
        (tmp_path / "outputs" / "a" / name / "export").mkdir(parents=True)
        file = tmp_path / "outputs" / "a" / name / "run.json"
        file.touch()
        os.utime(file, (number, number))
    assert other_runs.start_problem("outputs/a") == (
        "got outputs/a, a folder of runs; expected one of them; did you mean outputs/a/new?"
    )
    assert other_runs.start_problem("outputs/a/new") is None
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


def test_a_run_is_compared_with_the_last_finished_one_beside_it(tmp_path):
    ours = {"optimizer": {"lr": 2}, "seed": 1}
    assert other_runs.difference_from_last_run(tmp_path / "b", ours) is None
    for name, status in (("a", "finished"), ("c", "failed")):
        (tmp_path / name).mkdir()
        RunDirectory(tmp_path / name).update_record(status=status, identity={"optimizer": {"lr": 1}, "seed": 1})
    said = other_runs.difference_from_last_run(tmp_path / "b", ours)
    assert said == "differs from the finished run a in optimizer.lr 1 -> 2"
    assert other_runs.difference_from_last_run(tmp_path / "b", {"optimizer": {"lr": 1}, "seed": 1}) is None
    option = {"@": "optimizer/code:mine version 1", "momentum": 0.9}
    for theirs, said in (
        ("optimizer/adamw version 1", "optimizer adamw -> code:mine"),
        ("optimizer/code:mine version 2", "optimizer code:mine version 2 -> code:mine version 1"),
    ):
        RunDirectory(tmp_path / "a").update_record(identity={"optimizer": {"@": theirs, "beta": 1}})
        found = other_runs.difference_from_last_run(tmp_path / "b", {"optimizer": option})
        assert found == f"differs from the finished run a in {said}"
    many = {f"x{index}": index for index in range(6)}
    assert other_runs.difference_from_last_run(tmp_path / "b", many) is None
