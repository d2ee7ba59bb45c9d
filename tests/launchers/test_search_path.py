"""The `conf` packages of extensions are found by arctic_hydra, and by no other program."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint

import pytest
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra_plugins.arctic_hydra import search_path

from arctic_hydra.cli.composition.search_path import conf_dir
from arctic_hydra.files import extensions


@pytest.mark.parametrize(("program", "found"), [(conf_dir(), ["pkg://my_lab.conf"]), ("/another/program/conf", [])])
def test_extensions_are_appended_for_this_program_only(program, found, monkeypatch):
    points = [EntryPoint("my_lab", "my_lab.components", "arctic_hydra"), EntryPoint("bare", "bare.x", "arctic_hydra")]
    monkeypatch.setattr(extensions, "extensions", lambda: points)
    package = ModuleSpec("package", None, is_package=True)
    monkeypatch.setattr(search_path, "find_spec", lambda name: None if name == "bare.conf" else package)
    paths = ConfigSearchPathImpl()
    paths.append("main", f"file://{program}")
    search_path.ExtensionSearchPath().manipulate_search_path(paths)
    assert [item.path for item in paths.get_path()[1:]] == found
