"""The identity of a run: what changes its id, and what does not."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from arctic_hydra import component, config
from arctic_hydra.cli import compose
from arctic_hydra.data.code_identity import code_identity, legacy_identity
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.launch.job import Job
from arctic_hydra.optimizer.adamw import AdamWFactory


def built(*overrides: str) -> config.Run:
    return config.build(compose.without_hydra(compose.compose_config(list(overrides), "config")))


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
    point = EntryPoint("my_lab", "other.options", component.ENTRY_POINT_GROUP)
    monkeypatch.setattr(component, "extensions", lambda: [point])
    component._extension_of.cache_clear()
    monkeypatch.setattr(AdamWFactory, "__module__", "other.optimizers")
    try:
        assert AdamWFactory.identity_name() == "my_lab:optimizer/adamw"
    finally:
        component._extension_of.cache_clear()


def test_a_run_of_before_goes_on_in_its_directory(tmp_path: Path) -> None:
    cfg = compose.without_hydra(compose.compose_config([f"output_root={tmp_path}"], "config"))
    assert Job.of(cfg, []).directory.path.name == config.run_id(built())
    before = tmp_path / "default" / config.legacy_run_id(built())
    before.mkdir(parents=True)
    assert Job.of(cfg, []).directory.path == before
    with legacy_identity(True):
        assert code_identity(JsonSource(path="x"))["class"] == "arctic_hydra.data.source.json.JsonSource"
