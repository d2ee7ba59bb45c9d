"""The identity of a run: what changes its id, and what does not."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra import config, hub
from arctic_hydra.data.code_identity import code_identity, legacy_identity
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.errors import ConfigError
from arctic_hydra.files import extensions
from arctic_hydra.launch.job import Job
from arctic_hydra.optimizer.adamw import AdamWFactory
from tests.composing import built, composed


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_identity_ignores_how_numbers_and_paths_are_written(tmp_path):
    (tmp_path / "data.jsonl").write_text("")
    base = ["data=json", "data.sources.json.path=data.jsonl"]
    absolute = ["data=json", f"data.sources.json.path={tmp_path / 'data.jsonl'}"]

    def identified(arguments):
        tree = hub.absolute_paths(composed(*arguments), Path.cwd())
        return config.run_id(config.build(tree))

    same = identified(base)
    assert identified(absolute) == same
    assert identified([*base, "optimizer.lr=5e-4", "data.max_length=0.5Ki"]) == identified(
        [*base, "data.max_length=512"]
    )
    for outside in (
        "log.interval=5", "tracking=[]", "checkpoint=[]", "trainer.exit_iteration=3", "name=other",
        "checkpoint.deepspeed.save_every_n_steps=3", "data.num_proc=1", "data.cache=off", "output_root=elsewhere",
    ):  # fmt: skip
        assert identified([*base, outside]) == same, outside
    for inside in ("optimizer.lr=1e-3", "seed=1", "trainer.epochs=2", "data.max_length=256", "deepspeed=zero1"):
        assert identified([*base, inside]) != same, inside
    spread = identified([*base, "ranks=2"])
    assert spread != same, "twice the global batch"
    assert identified([*base, "trainer.gradient_accumulation_steps=2"]) == spread


@pytest.mark.parametrize(
    ("objective", "higher"),
    [("eval/accuracy", True), ("eval/rewards/chosen", True), ("eval/rewards/rejected", False), ("auto", False)],
)
def test_the_direction_of_an_objective_follows_from_its_name(objective: str, higher: bool) -> None:
    assert built(f"objective={objective}").maximizes is higher


def test_components_of_a_run_that_nothing_listens_to_notify_nobody() -> None:
    """As in task=preview and task=check, which build parts of a run without training it."""
    run = built()
    with run.data.event("create_loader"):
        pass
    assert (run.data.trainer, run.trainer.zero_stage, run.data.world_size) == (run.trainer, run.deepspeed.stage, 1)


def test_moving_a_class_changes_neither_run_ids_nor_cache_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config.run_id(built()), code_identity(JsonSource(path="x"))
    for cls in (AdamWFactory, JsonSource):
        monkeypatch.setattr(cls, "__module__", "arctic_hydra.elsewhere")
    assert (config.run_id(built()), code_identity(JsonSource(path="x"))) == before


def test_a_field_at_its_default_does_not_count_and_any_other_value_does() -> None:
    usual = config.run_id(built())
    assert config.run_id(built("optimizer.lr=5e-4", "seed=42", "trainer.epochs=1")) == usual
    for override in ("optimizer.lr=1e-3", "seed=43", "trainer.epochs=2", "optimizer=muon", "data.max_length=512"):
        assert config.run_id(built(override, "deepspeed.gradient_clipping=0")) != usual, override


def test_a_raised_version_of_a_component_changes_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config.run_id(built()), code_identity(JsonSource(path="x"))
    monkeypatch.setattr(AdamWFactory, "component_version", 2)
    monkeypatch.setattr(JsonSource, "component_version", 2)
    assert config.run_id(built()) != before[0]
    assert code_identity(JsonSource(path="x")) != before[1]


def test_an_extension_component_is_known_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    assert AdamWFactory.identity_name() == "optimizer/adamw"
    point = EntryPoint("my_lab", "other.options", extensions.ENTRY_POINT_GROUP)
    monkeypatch.setattr(extensions, "extensions", lambda: [point])
    extensions.extension_of.cache_clear()
    monkeypatch.setattr(AdamWFactory, "__module__", "other.optimizers")
    try:
        assert AdamWFactory.identity_name() == "my_lab:optimizer/adamw"
    finally:
        extensions.extension_of.cache_clear()


LEGACY_IDS = {
    "": "5816463ccc",
    "peft=lora peft.r=8": "f10f20bf9c",
    "model=hf model.name_or_path=org/x model.revision=r1": "dce53247b0",
    "optimizer=muon deepspeed=zero2 deepspeed.gradient_clipping=0": "c65d7baa1a",
    "data=mix data/sources=[chat,ultrachat]": "2fe71bc0d6",
}
"""Run ids from before components were known by name. A new field belongs in `config._ADDED_FIELDS`."""


@pytest.mark.parametrize("overrides", LEGACY_IDS)
def test_the_ids_of_runs_of_before_stay_known(overrides: str) -> None:
    assert config.legacy_run_id(built(*overrides.split())) == LEGACY_IDS[overrides]


def test_a_run_of_before_goes_on_in_its_directory(tmp_path: Path) -> None:
    tree = composed(f"output_root={tmp_path}")
    assert Job.of(tree, []).directory.path.name == config.run_id(built())
    before = tmp_path / "default" / config.legacy_run_id(built())
    before.mkdir(parents=True)
    assert Job.of(tree, []).directory.path == before
    with legacy_identity(True):
        assert code_identity(JsonSource(path="x"))["class"] == "arctic_hydra.data.source.json.JsonSource"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"_target_": "arctic_hydra.optimizer.adamw.AdamWFactory"}, "_target_: got .*, expected a subclass of Run"),
        ({"model": [1]}, r"model: got \[1\], expected an option"),
        ({"tokenizer": {"name_or_path": None}}, "tokenizer: got .*, expected an option"),
        ({"model": {"save_name": "x"}, "checkpoint": {"hf": 7}}, "checkpoint.hf: got 7, expected an option"),
        ({"checkpoint": 5}, "checkpoint: got 5, expected named entries"),
    ],
)
def test_an_edited_run_file_is_refused_with_its_keys(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        config.build({**composed(), **changes})


def test_the_settings_of_chat_and_of_generated_answers_are_no_part_of_the_identity():
    talk = ("task=chat", "prompt=a", "system=b", "temperature=1", "top_p=0.5", "sampling_seed=3", "max_new_tokens=9")
    run = built(*talk, "generation_batch_size=2", "exact_match.pattern=a", "exact_match.rows=3", "from_checkpoint=best")
    assert (config.run_id(run), config.legacy_run_id(run)) == (config.run_id(built()), config.legacy_run_id(built()))
    assert config.run_id(built("seed=7")) != config.run_id(built())
