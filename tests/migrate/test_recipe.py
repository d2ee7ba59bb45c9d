"""Configs of other trainers: read, recognized, and refused as arguments of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_hydra.errors import ConfigError
from arctic_hydra.migrate.recipe import experiment_name, load, project_of, refusal, refused_name

ARCTIC = "model: {name_or_path: org/base}\ndata: {sources: [org/a]}\nepochs: 2\n"
AXOLOTL = "base_model: org/base\nsequence_len: 2048\nmicro_batch_size: 2\nlearning_rate: 1e-4\ndatasets: [{path: a}]\n"
FACTORY = (
    "model_name_or_path: org/base\nstage: sft\nfinetuning_type: lora\ncutoff_len: 9\nlearning_rate: 1e-4\nbf16: true\n"
)
TRL = "model_name_or_path: org/base\ndataset_name: org/a\nmax_length: 8\nlearning_rate: 1e-4\nuse_peft: true\n"
ARGUMENTS = "learning_rate: 1e-4\nper_device_train_batch_size: 2\nnum_train_epochs: 3\n"
OURS = "model: {name_or_path: org/base}\ndata: {sources: {a: {path: org/a}}}\nseed: 3\n"


@pytest.mark.parametrize(
    ("text", "project"),
    [
        (ARCTIC, "arctictraining"),
        (ARCTIC + "unknown: 3\n", "arctictraining"),
        (AXOLOTL, "axolotl"),
        (FACTORY, "llamafactory"),
        (TRL, "trl"),
        (ARGUMENTS, "transformers"),
        (OURS, ""),
        ("defaults: [config, _self_]\n" + ARCTIC, ""),
        ("a: 1\nb: 2\n", ""),
        ("dataset: a\ntemplate: b\n", ""),
    ],
)
def test_a_config_is_recognized(text: str, project: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert project_of(load(str(path))) == project


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "x.yaml: there is no such file; expected the path of a recipe"),
        ("- a\n", "x.yaml: got a list, expected a recipe: keys with values"),
        ("", "x.yaml: got an empty file, expected a recipe"),
        ("abc", "x.yaml: got 'abc', expected a recipe"),
        ("a: [\n", "x.yaml:2: expected the node content, but found"),
        ("a: 1\nb: {c: 1, c: 2}\n", "x.yaml:2: 'c' appears twice; fix this file"),
        ("? [a]\n: 1\n", "x.yaml:1: found unhashable key; fix this file"),
        ("a: \x01", "x.yaml: not valid YAML in UTF-8; fix this file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str | None, problem: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("x.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load("x.yaml")
    assert str(error.value).startswith(problem) and "\n" not in str(error.value)
    assert refusal("x.yaml") == str(error.value)


def test_numbers_in_the_notation_of_yaml_1_2_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1e-5\nb: 5e8\nc: 1e-5x\n")
    assert load(str(tmp_path / "x.yaml")) == {"a": 1e-5, "b": 5e8, "c": "1e-5x"}


def test_a_file_as_an_argument_names_the_command_that_takes_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("r.yaml", ARCTIC), ("a.yml", AXOLOTL), ("own.yaml", OURS), ("experiment/e.yaml", OURS)):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    convert = (
        "is a recipe of ArcticTraining; convert it with python -m arctic_hydra.migrate r.yaml --out experiment/r.yaml"
    )
    assert refusal("r.yaml") == f"r.yaml: {convert}"
    assert refusal("a.yml").startswith(
        "a.yml: is a config of Axolotl; python -m arctic_hydra.migrate a.yml lists its keys"
    )
    assert refusal("own.yaml").endswith("expected key=value; pass --config-dir . --config-name own")
    assert refusal("experiment/e.yaml").endswith("pass --config-dir . experiment=e")
    for name, text in (
        ("my rows.jsonl", '{"a": 1}\n{"a": 2}\n'),
        ("r.json", '[{"a": 1}]'),
        ("r.csv", "a,b\n"),
        ("r.txt", ""),
    ):
        Path(name).write_text(text)
        kind = "text" if name == "r.txt" else "json"
        assert refusal(name).startswith(f"{name}: got a file of data, expected key=value; pass data={kind} ")
    assert refusal("my rows.jsonl").endswith("pass data=json 'data.sources.json.path=my rows.jsonl'")
    Path("c.json").write_text('{"model": {"name_or_path": "a"}, "data": {"sources": ["b"]}}')
    assert "is a recipe of ArcticTraining" in refusal("c.json")
    assert refusal("seed=3") == refusal("x=r.yaml") == refusal("seed") == ""
    assert refused_name("r.yaml", None) == refused_name("r", ".") == f"r.yaml: {convert}"
    assert refused_name("own", ".") == refused_name("gone", ".") == refused_name(None, None) == ""


def test_a_recipe_names_its_experiment() -> None:
    assert experiment_name("a/my recipe (1).yaml") == "my_recipe_1"
    assert experiment_name("a/...yaml") == "recipe"
