"""python -m arctic_hydra.migrate."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_hydra import __main__ as command
from arctic_hydra.migrate.__main__ import main
from tests.migrate.test_recipe import ARCTIC, AXOLOTL


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(ARCTIC)
    (tmp_path / "a.yml").write_text(AXOLOTL)
    return tmp_path


def test_a_recipe_is_printed_then_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["r.yaml"]) == 0
    shown = capsys.readouterr()
    run = "python -m arctic_hydra --config-dir . experiment=r"
    assert shown.out.startswith(f"# @package _global_\n# {run}\n")
    assert shown.out.endswith(f"# with this in experiment/r.yaml:\n# {run}\n")
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == ["different here", "different here"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.yml", "r.yaml"]


def test_a_written_experiment_runs_with_the_printed_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["r.yaml", "--out", "own/experiment/mine.yaml"]) == 0
    said, run = capsys.readouterr().out.splitlines()
    assert said == "written to own/experiment/mine.yaml; run it with"
    assert run == "python -m arctic_hydra --config-dir own experiment=mine"
    assert command.main([*run.split()[3:], "--cfg", "job"]) == 0
    assert "name_or_path: org/base" in capsys.readouterr().out
    assert main(["r.yaml", "--out", "own/experiment/mine.yaml"]) == 2
    assert "own/experiment/mine.yaml exists; remove it" in capsys.readouterr().err


def test_a_config_of_another_project_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a.yml"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "keys of this config of Axolotl in arctic_hydra's terms:"
    assert lines[1].split() == ["sequence_len", "data.max_length"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["gone.yaml"], "gone.yaml: there is no such file; expected the path of a recipe"),
        (["r.yaml", "--out", "mine.yaml"], "--out: got mine.yaml, expected a .yaml file in a folder named experiment"),
        (
            ["r.yaml", "--out", "experiment/my recipe.yaml"],
            "--out: got experiment/my recipe.yaml, whose name no run can have; expected one such as experiment/my_recipe.yaml",
        ),
        (["a.yml", "--out", "experiment/a.yaml"], "--out: a.yml is a config of Axolotl, whose keys are only listed"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {text}")


def test_a_table_is_of_a_project_and_of_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--table", "trl", "recipe.yaml"])
    assert "pass no recipe and no --out with it" in capsys.readouterr().err


def test_a_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table", "trl"]) == 0
    assert "| `max_seq_length` | `data.max_length` | |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "r.yaml",
            "r.yaml: is a recipe of ArcticTraining; convert it with python -m arctic_hydra.migrate r.yaml --out",
        ),
        ("--config-name r.yaml", "r.yaml: is a recipe of ArcticTraining"),
        ("--config-dir . --config-name r", "r.yaml: is a recipe of ArcticTraining"),
        ("-m r.yaml", "r.yaml: is a recipe of ArcticTraining"),
        ("gone.yaml", "gone.yaml: there is no such file"),
        (
            "--learning-rate 1e-4",
            "--learning-rate: there is no such option; learning_rate of transformers and Axolotl is optimizer.lr",
        ),
        ("push_to_hub=true", "push_to_hub: there is no such key; push_to_hub of transformers has no counterpart here"),
        (
            "trainer.max_steps=10",
            "trainer.max_steps: there is no such key; max_steps of transformers and Axolotl is trainer.train_iters",
        ),
    ],
)
def test_the_command_names_what_to_do_instead(arguments: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {text}")
