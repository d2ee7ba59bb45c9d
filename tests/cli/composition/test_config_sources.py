"""Config files are read once for all jobs of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.cli.composition import compose
from arctic_hydra.cli.composition.config_sources import ConfigCache


def test_a_file_edited_after_the_first_composition_is_not_read_again():
    option = Path("mine/experiment/mine.yaml")
    option.parent.mkdir(parents=True)
    option.write_text("# @package _global_\nseed: 5\n")
    cache = ConfigCache()
    for _ in range(2):
        assert compose.compose_config(["experiment=mine"], "config", "mine", cache).job["seed"] == 5
        option.write_text("# @package _global_\nseed: 6\n")
    assert compose.compose_config(["experiment=mine"], "config", "mine").job["seed"] == 6


def test_a_composition_does_not_change_what_is_cached():
    cache = ConfigCache()
    assert compose.compose_config(["seed=7"], "config", cache=cache).job["seed"] == 7
    assert compose.compose_config([], "config", cache=cache).job["seed"] == 42


KEY = "model.hf_config_kwargs"


def chain(entry: str, node: str, first: str) -> str:
    """A dictionary of `first` and eight nodes, each with ten entries that refer to the node before."""
    nodes = [f"a0: &a0 {first}"]
    for level in range(1, 9):
        entries = ",".join(entry.replace("BEFORE", f"a{level - 1}").replace("N", str(number)) for number in range(10))
        nodes.append(node.replace("THIS", f"a{level}").replace("ENTRIES", entries))
    return "{" + ", ".join(nodes) + "}"


TOO_LARGE = "own.yaml: holds more than 50,000 values, or texts of as many times 100 characters, with its aliases repeated; shorten it"
TOO_MANY = "its interpolations make more than 3,000 values, or texts of as many times 1,000 characters; refer to fewer or shorter ones"
REFERENCE = "${" + KEY + ".BEFORE}"
BOMBS = {
    "aliases": (chain("*BEFORE", "THIS: &THIS [ENTRIES]", "[x]"), TOO_LARGE),
    "merged aliases": (chain("*BEFORE", "THIS: &THIS {<<: [ENTRIES]}", "{k: v}"), TOO_LARGE),
    "an alias of its own": ("&a {x: *a}", TOO_LARGE),
    "aliases of a long text": (f"{{a: &a {'x' * 100_000}, b: [{'*a,' * 60}]}}", TOO_LARGE),
    "many values": (f"{{a: [{'1,' * 60_000}]}}", TOO_LARGE),
    "a long text": (f"{{a: {'x' * 6_000_000}}}", TOO_LARGE),
    "nested lists": (
        f"{{a: {'[' * 5000}{']' * 5000}}}",
        "own.yaml: nests values more than 100 levels deep; fix this file",
    ),
    "texts": (chain(REFERENCE, "THIS: 'ENTRIES'", "x"), TOO_MANY),
    "lists": (chain(f"'{REFERENCE}'", "THIS: [ENTRIES]", "[x]"), TOO_MANY),
    "dictionaries": (chain(f"kN: '{REFERENCE}'", "THIS: {ENTRIES}", "{k: v}"), TOO_MANY),
    "a resolver": (chain("${oc.select:" + KEY + ".BEFORE}", "THIS: 'ENTRIES'", "x"), TOO_MANY),
    "a long variable": (f"{{a: '{'${oc.env:LONG}' * 60}'}}", TOO_MANY),
}
"""Values of a config file that a few lines make enormous, and what is said of them."""


@pytest.mark.parametrize("what", BOMBS)
def test_a_file_that_would_fill_the_memory_is_refused(what, tmp_path, monkeypatch, capsys):
    value, text = BOMBS[what]
    monkeypatch.setenv("LONG", "x" * 100_000)
    (tmp_path / "own.yaml").write_text(f"defaults: [config, _self_]\nmodel: {{hf_config_kwargs: {value}}}\n")
    assert main(["--cfg", "job", "--config-dir", str(tmp_path), "--config-name", "own"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {KEY}" if text == TOO_MANY else f"error: {tmp_path}/own") and text in line, line


def test_aliases_merge_keys_and_interpolations_of_usual_sizes_are_read(tmp_path):
    kwargs = f"{{a: &a {{x: 1}}, b: {{<<: *a, y: [*a, *a]}}, c: '{'${seed}' * 500}', d: [{'1,' * 2000}]}}"
    (tmp_path / "own.yaml").write_text(f"defaults: [config, _self_]\nmodel: {{hf_config_kwargs: {kwargs}}}\n")
    found = compose.compose_config([], "own", str(tmp_path)).job["model"]["hf_config_kwargs"]
    assert found["b"] == {"x": 1, "y": [{"x": 1}] * 2} and found["c"] == "42" * 500 and found["d"] == [1] * 2000


NOT_PLAIN = {
    "!!binary aGVsbG8=": "got the tag '!!binary', expected plain data; remove the tag, or use one of !!str, !!int,",
    "!!set {a, b}": "got the tag '!!set', expected plain data; remove the tag, or use one of !!map",
    "!!omap [a: 1]": "got the tag '!!omap', expected plain data; remove the tag, or use one of !!seq",
    "!!pairs [a: 1]": "got the tag '!!pairs'",
    "!!timestamp 2026-01-01": "got the tag '!!timestamp'",
    "{x: [!!binary aGVsbG8=]}": "got the tag '!!binary'",
    "{? !!binary aGVsbG8= : 1}": "got the tag '!!binary'",
    "!<tag:yaml.org,2002:binary> aGVsbG8=": "got the tag '!!binary'",
    "!!python/object/apply:pathlib.Path [x]": "got the tag '!!python/object/apply:pathlib.Path', expected plain data",
    "!!python/tuple [1]": "got the tag '!!python/tuple'",
    "!mine x": "got the tag '!mine'",
    "!!str [a]": "got the tag '!!str', expected plain data; remove the tag, or use one of !!seq",
    "!!seq x": "got the tag '!!seq'",
    "!!map x": "got the tag '!!map'",
    "!!int abc": "got the tag !!int before another value; remove the tag, or correct the value",
    "!!int ''": "got the tag !!int before",
    "!!float x": "got the tag !!float before",
    "!!bool maybe": "got the tag !!bool before",
    "!!null hello": "got the tag !!null before",
}
"""Values with a tag that makes bytes, a date, a path, ... of them, or that does not fit; and what is said of them."""


@pytest.mark.parametrize("value", NOT_PLAIN)
def test_a_tag_that_makes_no_plain_data_is_refused(value, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(f"defaults: [config, _self_]\nmodel:\n  hf_config_kwargs:\n    x: {value}\n")
    assert main(["--cfg", "job", "--config-dir", str(tmp_path), "--config-name", "own"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/own.yaml:4: {NOT_PLAIN[value]}"), line


def test_tags_of_plain_data_are_read(tmp_path):
    kwargs = (
        "{a: !!str 5, b: !!int '5', c: !!float 5, d: !!bool yes, e: !!null ~, f: !!map {x: !!seq [! y]}, g: 2026-01-01}"
    )
    (tmp_path / "own.yaml").write_text(f"defaults: [config, _self_]\nmodel: {{hf_config_kwargs: {kwargs}}}\n")
    found = compose.compose_config([], "own", str(tmp_path)).job["model"]["hf_config_kwargs"]
    assert found == {"a": "5", "b": 5, "c": 5.0, "d": True, "e": None, "f": {"x": ["y"]}, "g": "2026-01-01"}
    assert [type(value) for value in found.values()] == [str, int, float, bool, type(None), dict, str]


def test_files_that_include_each_other_too_often_are_refused(tmp_path, capsys):
    (tmp_path / "part").mkdir()
    for level in range(8):
        included = ",".join(f"a{level + 1}@p{number}" for number in range(10))
        (tmp_path / "part" / f"a{level}.yaml").write_text(f"defaults: [{included}]\n")
    (tmp_path / "part" / "a8.yaml").write_text("x: 1\n")
    whole = [f"+part@{KEY}=a0", "--cfg", "job", "--config-dir", str(tmp_path)]
    assert main(whole) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: part/a") and "include more than 2,000 files in all; include fewer" in line
    few = compose.compose_config([f"+part@{KEY}=a6"], "config", str(tmp_path)).job["model"]["hf_config_kwargs"]
    assert few["p9"]["p9"] == {"x": 1}
