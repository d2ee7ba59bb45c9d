"""Groups, options and keys, as files and classes declare them."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hydra_plugins.arctic_hydra._search import PRUNERS, SAMPLERS

from arctic_hydra.__main__ import main
from arctic_hydra.cli.composition.search_path import hydra_with
from arctic_hydra.cli.help.inventory import HYDRA_GROUPS, groups
from arctic_hydra.config import Log
from arctic_hydra.converter.float8 import Float8Converter
from arctic_hydra.engine import ZeROFactory


def keys(known, group, name):
    return {key.field: key for key in known.option(group, name).keys}


def test_every_key_has_a_type_and_a_text_and_every_option_a_line(known):
    assert [key.name for key, _ in known.every_key() if not (key.kind and key.doc)] == []
    options = [known.option(group, name) for group, names in known.groups.items() for name in names]
    assert [
        f"{option.group}={option.name}"
        for option in options
        if not option.about and option.group != "data/eval_sources"
    ] == []


def test_every_number_has_a_range(known):
    numbers = [key for key, _ in known.every_key() if key.kind.startswith(("integer", "number"))]
    assert len({key.name for key in numbers}) > 150
    assert sorted({key.name for key in numbers if not re.search(r" (?:>= |<= )?[\d-]", key.kind)}) == []


def test_a_dataset_is_described_by_its_file_and_a_class_by_its_docstring(known):
    assert known.option("data/sources", "json").about.startswith("Conversations from your own files:")
    assert known.option("source", "json").about.startswith("One or more JSON or JSON Lines files")


def test_the_default_of_a_group_comes_first(known):
    assert (known.groups["model"][0], known.groups["trainer"][0], known.groups["peft"][0]) == ("tiny", "sft", "none")
    assert known.defaults("checkpoint") == ["deepspeed", "hf"] and known.defaults("experiment") == []


def test_the_groups_of_hydra_have_the_options_that_hydra_finds(known):
    with hydra_with() as loader:
        assert {group: loader.get_group_options(group) for group in HYDRA_GROUPS} == {
            group: known.groups[group] for group in HYDRA_GROUPS
        }


def test_defaults_are_those_of_the_file_of_an_option(known):
    assert keys(known, "data", "chat")["max_length"].default == "512"
    assert keys(known, "deepspeed", "zero3")["stage"].default == "3"
    assert keys(known, "data/sources", "ultrachat")["split_mapping"].default == "{train:train_sft,eval:test_sft}"
    assert (
        keys(known, "model", "spec")["spec"].default == ""
        and keys(known, "model", "spec")["spec"].section == "Required"
    )
    assert keys(known, "data/eval_sources", "ultrachat")["path"].default.startswith(
        "${oc.select:data.sources.ultrachat.path"
    )
    assert keys(known, "peft", "dora")["use_dora"].default == "true"


def test_types_ranges_and_units(known):
    trainer, source = keys(known, "trainer", "dpo"), keys(known, "source", "json")
    assert trainer["epochs"].kind == "integer 0 to 1e6, in epochs"
    assert trainer["label_smoothing"].kind == "number 0 to 1"
    assert trainer["head_loss"].values == ("auto", "liger", "chunked", "full")
    assert trainer["overfit_first_batch"].kind == "true | false"
    assert (source["path"].name, source["path"].kind) == ("data.sources.<name>.path", "path or list of paths")
    assert source["sample_seed"].kind == "integer 0 to 2^64-1"
    assert keys(known, "checkpoint", "deepspeed")["keep_last"].kind == "integer >= 1, or null"
    assert keys(known, "checkpoint", "hf")["merge"].name == "checkpoint.hf.merge"
    slurm = keys(known, "hydra/launcher", "slurm")
    assert slurm["timeout_min"].kind == "integer 0 to 1e9, in minutes"
    assert slurm["mem_gb"].kind == "number 0 to 1e6, in GB"


def test_allowed_values_of_plain_text_are_those_that_are_accepted(known):
    sweeper = keys(known, "hydra/sweeper", "optuna")
    assert (sweeper["sampler"].values, sweeper["pruner"].values) == (SAMPLERS, tuple(PRUNERS))
    assert [Log(level=name).level for name in keys(known, "log", "default")["level"].values]
    assert [Float8Converter(recipe=name).recipe for name in keys(known, "converter", "float8")["recipe"].values]
    assert [ZeROFactory(stage=int(name)).stage for name in keys(known, "deepspeed", "zero0")["stage"].values] == [
        0,
        1,
        2,
        3,
    ]


def test_options_of_a_folder_and_of_a_file_of_ones_own(tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n# What I try.\nseed: 7\n")
    assert "mine" in groups(str(tmp_path))["experiment"] and "mine" not in groups()["experiment"]
    assert main(["--config-dir", str(tmp_path), "--help", "experiment=mine"]) == 0
    page = capsys.readouterr().out
    assert "What I try." in page and "  seed=7\n" in page


DAMAGED = {
    "no YAML": "a: [1\n",
    "no text": b"\xff\xfe",
    "a tag": "!!python/object/apply:os.system [ls]\n",
    "no list": "defaults: 3\n1: {2: 3}\n",
    "itself": "defaults: [/experiment/mine@_here_]\n",
    "a bomb": "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in pairwise("abcdefgh")),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_of_a_folder_is_an_option_without_a_text(content, tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["--config-dir", str(tmp_path), "--help", "experiment", "experiment=mine"]) == 0
    assert "  mine" in capsys.readouterr().out


def test_values_of_files_are_shown_without_secrets_and_control_characters(tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        '# @package _global_\ncallback: {x: {api_key: my-own-key}}\nname: "a\\eb"\n'
    )
    assert main(["--config-dir", str(tmp_path), "--help", "experiment=mine"]) == 0
    page = capsys.readouterr().out
    assert "my-own-key" not in page and "callback.x.api_key=***" in page and "name=a\\x1bb" in page
