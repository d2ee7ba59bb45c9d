"""Data sources of a recipe."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from arctic_hydra.errors import ConfigError
from arctic_hydra.migrate.experiment import Experiment
from arctic_hydra.migrate.recipe_sources import KNOWN, convert_sources
from tests.command import ROOT


def test_known_data_sets_are_those_of_the_options() -> None:
    for path, option in KNOWN.items():
        assert yaml.safe_load((ROOT / f"conf/data/sources/{option}.yaml").read_text())["path"] == path


CASES: list[tuple[Any, dict[str, str], dict[str, Any]]] = [
    ("org/My-Set", {"source@data.sources.my_set": "hf"}, {"data.sources.my_set.path": "org/My-Set"}),
    (
        "org/a:train[:10%]",
        {"source@data.sources.a": "hf"},
        {"data.sources.a.path": "org/a", "data.sources.a.split": "train[:10%]"},
    ),
    ("s3://bucket/a", {"source@data.sources.a": "hf"}, {"data.sources.a.path": "s3://bucket/a"}),
    ("./a:b", {"source@data.sources.a_b": "hf"}, {"data.sources.a_b.path": "./a:b"}),
    (
        [{"name_or_path": "json", "kwargs": {"data_files": {"train": "x.jsonl"}}, "split": "train"}],
        {"source@data.sources.json": "json"},
        {"data.sources.json.path": "x.jsonl"},
    ),
    (
        {"name_or_path": "json", "kwargs": {"data_files": {"test": "t", "train": "a"}}, "split": "test[:1%]"},
        {"source@data.sources.json": "json"},
        {"data.sources.json.path": "t", "data.sources.json.split": "[:1%]"},
    ),
    (
        {"name_or_path": "json", "kwargs": {"data_files": {"test": "t", "train": "a"}}},
        {"source@data.sources.json": "json"},
        {"data.sources.json.path": "a"},
    ),
    (
        {"name_or_path": "org/a", "kwargs": {"name": "en"}, "sample_count": "1K", "content_key": None},
        {"source@data.sources.a": "hf"},
        {"data.sources.a.path": "org/a", "data.sources.a.kwargs": {"name": "en"}, "data.sources.a.sample_count": "1K"},
    ),
    (
        {"name_or_path": "Open-Orca/SlimOrca", "role_mapping": {"user": "q"}},
        {"source@data.sources.slimorca": "hf"},
        {"data.sources.slimorca.path": "Open-Orca/SlimOrca", "data.sources.slimorca.role_mapping": {"user": "q"}},
    ),
    (["meta-math/MetaMathQA"], {"data/sources@data.sources.metamath": "metamath"}, {}),
]


@pytest.mark.parametrize(("given", "added", "values"), CASES)
def test_a_source_becomes_a_named_entry(given: Any, added: dict[str, str], values: dict[str, Any]) -> None:
    made = Experiment("mine", "x")
    convert_sources(made, "sources", given)
    assert (made.added, made.values, made.lost) == (added, values, [])


def test_names_differ_within_a_group() -> None:
    made = Experiment("mine", "x")
    convert_sources(made, "sources", ["a/x", "b/x"])
    convert_sources(made, "eval_sources", ["a/x"])
    assert [*made.added] == ["source@data.sources.x", "source@data.sources.x_2", "source@data.eval_sources.x"]


def test_a_source_of_its_own_code_is_named() -> None:
    made = Experiment("mine", "x")
    convert_sources(
        made, "sources", [{"type": "snowflake", "sql": "SELECT 1"}, {"type": "Mine", "name_or_path": "a", "k": 1}]
    )
    assert [line.partition(",")[0].partition(" is ")[0] for line in made.lost] == [
        "data.sources: a source of the type snowflake",
        "data.sources: the type Mine of a",
        "data.sources.k: there",
    ]
    with pytest.raises(ConfigError, match="data.sources: got 3, expected names of data sets"):
        convert_sources(made, "sources", [3])


def test_files_without_the_split_and_a_second_column_are_named() -> None:
    made = Experiment("mine", "x")
    convert_sources(made, "eval_sources", {"name_or_path": "json", "kwargs": {"data_files": {"test": "t"}}})
    convert_sources(made, "sources", [{"name_or_path": f"org/{name}", "column": name} for name in "aba"])
    assert made.values["data.column"] == "a" and "data.eval_sources.json.path" not in made.values
    assert made.lost == [
        "data.eval_sources: data_files of json has no split eval, only test; set the path of its entry",
        "data.sources.column: b of org/b; data.column is a for all sources; rename the column",
    ]
