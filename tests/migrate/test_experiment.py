"""The text of an experiment."""

from __future__ import annotations

import yaml

from arctic_hydra.migrate.experiment import Experiment


def test_the_file_has_comments_defaults_and_values_in_order() -> None:
    made = Experiment("mine", "r.yaml", lost=["code: why"], changed=["data.max_length: what"])
    made.added["source@data.sources.a"] = "hf"
    for group, option in (("callback", "[a]"), ("callback", "[b,a]"), ("model", "hf"), ("trainer", "sft")):
        made.choose(group, option)
    made.values |= {"data.sources.a.path": "org/a", "seed": 3, "data.max_length": "8Ki"}
    assert made.to_yaml("run it") == (
        "# @package _global_\n# run it\n# Made from r.yaml by python -m arctic_hydra.migrate.\n"
        "# Not carried over:\n#   code: why\n# Different here:\n#   data.max_length: what\n"
        "defaults:\n  - /source@data.sources.a: hf\n  - override /trainer: sft\n  - override /model: hf\n"
        "  - override /callback: [a, b]\n  - _self_\n\nname: mine\n"
        "data:\n  sources:\n    a:\n      path: org/a\n  max_length: 8Ki\nseed: 3\n"
    )


def test_values_of_several_lines_stay_in_their_comments_and_names_stay_texts() -> None:
    made = Experiment("2024", "r\nseed: 1", lost=["code: a\nseed: 2"], changed=["x: \x85seed: 3"])
    read = yaml.safe_load(made.to_yaml("run\nseed: 4"))
    assert read == {"defaults": ["_self_"], "name": "2024"}
